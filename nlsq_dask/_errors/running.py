"""Errors and warnings of how a fit is run: workflow, memory, checkpoints, chunks, its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nlsq_dask._errors.kinds import (
    CheckpointWarning,
    ClusterError,
    ConvergenceError,
    ConvergenceWarning,
    CovarianceWarning,
    DataChangedError,
    DerivativeWarning,
    ForkError,
    InputError,
    InputTypeError,
    LossScaleWarning,
    ModelError,
    Status,
    in_units,
    join_names,
    shortened,
    shown,
)


def no_such_device(platform: object, available: str) -> InputError:
    return InputError(
        f"device={platform!r} is not available: JAX runs on {available!r} here. "
        "Pass device='cpu', 'gpu' or None, or install a JAX that supports the device."
    )


def no_devices() -> InputError:
    return InputError(
        "device=[] names no device. Pass jax.local_devices(), or None for JAX's default."
    )


def device_twice(names: Sequence[str]) -> InputError:
    return InputError(
        f"device names {join_names(names)} more than once: pass each device once. A device takes "
        "blocks in turn with the others."
    )


def mixed_devices(platforms: Sequence[str]) -> InputError:
    return InputError(
        f"device names devices of {join_names(platforms)}, whose sums differ in their last bits: "
        "pass devices of one platform."
    )


def device_of_another_process(name: str, process: int) -> InputError:
    return InputError(
        f"device names {name}, a device of JAX process {process}: pass devices of this process, "
        "as in jax.local_devices()."
    )


def devices_on_a_cluster(names: Sequence[str]) -> InputError:
    return InputError(
        f"device names {join_names(names)} of this process, but workers of a cluster compute: pass "
        "device='cpu', 'gpu' or None, and each worker takes its own devices."
    )


def unknown_choice(argument: str, value: object, choices: Sequence[object]) -> InputError:
    listed = join_names([repr(choice) for choice in choices])
    return InputError(f"{argument} = {shown(value)} is unknown: choose one of {listed}.")


def lazy_data_in_memory(strategy: str) -> InputError:
    return InputError(
        f"strategy = {strategy!r} needs data in memory, but a Dask or Zarr array was passed: use "
        "strategy='streaming' or 'auto', or load small arrays first with .compute() or [...]."
    )


def end_of_fit(status: Status, undetermined: Sequence[str] = ()) -> str:
    """Why a fit ended, with the parameters that the data leave open."""
    if not undetermined:
        return status.message
    named = f"The data do not determine {join_names(undetermined)}"
    if status is Status.UNDETERMINED:
        return f"{named}: other values fit as well. Fix or bound them, or start them elsewhere."
    return f"{status.message} {named}."


def not_converged(message: str) -> ConvergenceWarning:
    return ConvergenceWarning(message)


def covariance_undetermined(names: Sequence[str] = ()) -> CovarianceWarning:
    """The Jacobian is singular, or there are too few rows."""
    if not names:
        return CovarianceWarning(
            "Covariance of the parameters could not be estimated: the data do not determine all "
            "parameters, or there are no more rows than parameters. pcov is infinite; simplify "
            "the model, or add data that depend on every parameter."
        )
    return CovarianceWarning(
        "Covariance of the parameters could not be estimated: the data do not determine "
        f"{join_names(names)}. pcov is infinite; fix or bound them, start them elsewhere, or add "
        "data that depend on every parameter."
    )


def derivatives_differenced(n_rows: int, n_points: int) -> DerivativeWarning:
    return DerivativeWarning(
        f"in {n_rows:,} of {n_points:,} rows the automatic derivatives of the model are not "
        "finite although its value is, as where a power, a root, a norm or a logarithm meets zero: "
        "differences of the model's values were taken there. To have exact "
        "ones, put a harmless number into such rows and select the value afterwards: "
        "safe = jnp.where(t > 0, t, 1.0); jnp.where(t > 0, safe**b, 0.0). Or leave the rows out "
        "with a mask."
    )


def f_scale_below_noise(loss: str, f_scale: float, noise: float) -> LossScaleWarning:
    """Most rows are outliers to a robust loss."""
    return LossScaleWarning(
        f"f_scale = {f_scale:.3g} of the loss {loss!r} is below the noise: half of the weighted "
        f"residuals are as large as with a standard deviation of {noise:.3g}. Most rows count as "
        "outliers, so that the estimates are less certain than they need be, and the search may "
        f"end in another minimum: pass f_scale from {noise:.2g} to {3 * noise:.2g}, or the noise "
        "as sigma and f_scale from 1 to 3; or check that the model follows the data."
    )


def optimum_not_found(message: str) -> ConvergenceError:
    """What curve_fit raises where fit warns."""
    return ConvergenceError(f"Optimal parameters not found: {message}")


def fit_ended(n_models: int, n_converged: int) -> str:
    """How a fit ended, in a few words, for a progress line."""
    if n_models > 1:
        return f"{n_converged} of {n_models} models converged"
    return "fit converged" if n_converged else "fit DID NOT converge"


def resume_without_checkpoint() -> InputError:
    return InputError(
        "resume=True needs checkpoint=..., the directory of the fit to go on with: a result's "
        "`checkpoint`, or the log of the interrupted fit, names it."
    )


def checkpoint_not_written(directory: object, cause: OSError) -> CheckpointWarning:
    return CheckpointWarning(
        f"no checkpoint could be written to {directory} ({cause}): the fit goes on without. Free "
        "some space or pass another checkpoint directory to be able to resume it."
    )


def checkpoints_not_read(directory: object, cause: OSError) -> CheckpointWarning:
    return CheckpointWarning(
        f"the checkpoints in {directory} cannot be read ({cause}): the fit starts anew. Give "
        "permission to read the directory, or pass the right one."
    )


def checkpoint_damaged(path: object, cause: Exception) -> CheckpointWarning:
    return CheckpointWarning(
        f"checkpoint {path} is damaged ({shortened(str(cause))}): going back to the one "
        "before it, or to the start."
    )


def ledger_damaged(path: object, cause: Exception) -> CheckpointWarning:
    return CheckpointWarning(
        f"ledger {path} is damaged ({shortened(str(cause))}): the pass that was interrupted begins "
        "anew."
    )


def ledger_of_other_data(path: object, number: int, n_groups: int) -> DataChangedError:
    return DataChangedError(
        f"the data have changed: group {number} of {n_groups} has other sums than in the pass that "
        f"was interrupted, of which {path} has the answers. {_SAME_DATA}; or begin anew, with "
        "another checkpoint directory."
    )


def checkpoint_of_another_release(path: object, form: object) -> CheckpointWarning:
    """A checkpoint is in a format that is not known."""
    return CheckpointWarning(
        f"checkpoint {path} is in the format {shown(form)}, which this release of nlsq_dask does "
        "not read: going back to the one before it, or to the start. Resume with the release that "
        "wrote it."
    )


def checkpoint_of_another_fit(
    path: object, differing: Sequence[str], saved: object, now: object
) -> InputError:
    return InputError(
        f"checkpoint {path} is of another fit: {shortened(join_names(differing))} differ "
        f"({shortened(differing[0])} was {shown(saved)} and is {shown(now)} now). "
        "Resume with the same problem, or pass another checkpoint directory."
    )


def append_without_checkpoint() -> InputError:
    return InputError(
        "append=True needs checkpoint=..., the directory of the fit of the rows before."
    )


def append_in_memory(strategy: str, n_distinct: int) -> InputError:
    if n_distinct:
        return InputError(
            "append=True: the rows are collapsed to means, and a checkpoint does not have these: "
            "pass collapse=False, in the first fit as well."
        )
    return InputError(
        f"append=True is for streamed data, and strategy = {strategy!r}: pass arrays of Dask or "
        "Zarr, or strategy='streaming'. Rows in memory are soon summed again."
    )


def append_to_unfinished(directory: object, *, ended: bool) -> InputError:
    if ended:
        return InputError(
            f"append=True: the last checkpoint in {directory} has no sums of its chunks. Another "
            "release wrote it, or the sums take too much memory: fit all rows, with another "
            "checkpoint directory."
        )
    return InputError(
        f"append=True: the fit in {directory} has not ended: finish it first, on the rows that it "
        "had, with resume=True."
    )


def append_to_other_chunks(
    directory: object, old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]
) -> InputError:
    return InputError(
        f"append=True: the chunks of the data are {shown(new)} and were {shown(old)} in the fit in "
        f"{directory}. Rows can be appended along the first dimension, in chunks of the same "
        "lengths: pass the arrays in such chunks, or fit all rows with another checkpoint "
        "directory."
    )


def append_damaged(directory: object, cause: Exception) -> InputError:
    return InputError(
        f"append=True: the sums in the last checkpoint in {directory} are damaged "
        f"({shortened(str(cause))}): fit all rows, with another checkpoint directory."
    )


_SAME_DATA = (
    "A fit needs the same data in every pass: wait until they are written, pass a copy, give "
    "random numbers upstream a seed for each block"
)


def _earlier(resumed: bool) -> str:
    return "the run that left the checkpoint" if resumed else "an earlier pass"


def data_changed_rows(
    first: tuple[int, int], now: tuple[int, int], *, resumed: bool
) -> DataChangedError:
    remedy = "; or begin anew, with another checkpoint directory" if resumed else ""
    return DataChangedError(
        f"the data have changed: {_earlier(resumed)} had {first[0]:,} rows and left out "
        f"{first[1]:,}, and this pass had {now[0]:,} and left out {now[1]:,}. {_SAME_DATA}{remedy}."
    )


def data_changed_values(name: str, first: float, now: float, *, resumed: bool) -> DataChangedError:
    what = {
        "weight": "the sum of the weights 1 / sigma²",
        "mean": "the mean of y",
        "sample": "the sum of every 512th value of y",
        "scatter": "the scatter of y, Σ (y - mean)² / sigma²,",
    }[name]
    remedy = "; or begin anew, with another checkpoint directory" if resumed else ""
    return DataChangedError(
        f"the data have changed: {what} was {first!r} in {_earlier(resumed)} and is {now!r} in "
        f"this pass. {_SAME_DATA}{remedy}."
    )


def data_changed_to(found: InputError) -> DataChangedError:
    return DataChangedError(
        f"the data have changed: {found} They were finite in an earlier pass. {_SAME_DATA}."
    )


def checkpoint_of_other_data(path: object, rows: Sequence[str], n: int) -> DataChangedError:
    return DataChangedError(
        f"checkpoint {path} is of a fit that ended on other data: the rows y{rows[0]} differ "
        f"({len(rows)} of {n} blocks that were compared). Pass resume=False or another checkpoint "
        "directory to fit these data."
    )


def count_invalid(name: str, value: object) -> InputError:
    return InputError(f"{name} = {value!r}: pass a positive whole number.")


def progress_invalid(value: object) -> InputError:
    return InputError(
        f"progress = {shown(value)}: pass True to show progress from the start, False for none, or "
        "None to show progress in a terminal and a notebook once the fit has taken two seconds."
    )


def seed_invalid(value: object) -> InputError:
    return InputError(
        f"seed = {value!r}: pass a whole number of at least zero. The same seed draws the same "
        "starts."
    )


def safety_factor_invalid(value: object) -> InputError:
    return InputError(
        f"safety_factor = {value!r}: pass a number above 0 and at most 1, the share of the "
        "available memory that a fit may use."
    )


def memory_invalid(name: str, value: object) -> InputError:
    return InputError(
        f"{name} = {value!r}: pass a positive finite number of gigabytes (1e9 bytes), or leave it "
        "out to use the memory that is available."
    )


def gpu_memory_unknown() -> InputError:
    return InputError(
        "use_gpu = True, but no GPU's memory is known: import jax first, in an installation that "
        "supports the GPU, or pass gpu_memory_gb or memory_limit_gb, or use_gpu=False."
    )


def workflow_for_lazy_data(workflow: str, strategy: str, choices: Sequence[str]) -> InputError:
    listed = " or ".join(repr(choice) for choice in choices)
    return InputError(
        f"workflow = {workflow!r} keeps the data in memory (strategy {strategy!r}), but a Dask or "
        f"Zarr array was passed: use workflow={listed}, or load small arrays first with .compute() "
        "or [...]."
    )


def data_exceed_memory(
    argument: str, value: str, data_gb: float, threshold_gb: float, choices: Sequence[str]
) -> InputError:
    """The rows cannot be kept in memory, which was asked for."""
    listed = " or ".join(repr(choice) for choice in choices)
    return InputError(
        f"{argument} = {value!r} keeps a copy of all rows in memory, {data_gb:.3g} GB, but a fit "
        f"may use {threshold_gb:.3g} GB: use workflow={listed}, or raise memory_limit_gb if there "
        "is more memory."
    )


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def chunk_too_large(
    chunks: tuple[int, ...],
    chunk_bytes: int,
    memory_bytes: int,
    threads: int,
    fitting_bytes: int,
    fitting_chunks: tuple[int, ...],
    joined: Sequence[int] = (),
) -> InputError:
    block = f"a chunk of shape {chunks}"
    if joined:
        block = (
            f"a block of whole series, of shape {chunks}, with all chunks along {tuple(joined)},"
        )
    return InputError(
        f"{block} takes {in_units(chunk_bytes)} when decoded, coordinates and sigma included, but "
        f"a worker with {in_units(memory_bytes)} of memory and {_threads(threads)} has room for "
        f"chunks of {in_units(fitting_bytes)}: rechunk all arrays alike, for example "
        f"y.rechunk({fitting_chunks}), or da.from_zarr(store, chunks={fitting_chunks}) for data in "
        "a store, or start workers with more memory or fewer threads."
    )


def memory_too_small(memory_bytes: int, threads: int, least_bytes: float) -> InputError:
    enough = 1.05 * least_bytes / 1e9  # two digits may round down by so much
    return InputError(
        f"{in_units(memory_bytes)} of memory for {_threads(threads)} leaves no room for chunks "
        f"beside the buffers of the threads: raise memory_limit_gb to {enough:.2g} or more, or "
        "start workers with more memory or fewer threads."
    )


def chunks_held(held_bytes: int, memory_bytes: int, room_bytes: int) -> InputError:
    """Chunks that differ too much would have to be kept in memory."""
    return InputError(
        f"the chunks of the arrays differ so much that {in_units(held_bytes)} of them would be "
        f"kept in memory, since many tasks need each; but a worker with {in_units(memory_bytes)} "
        f"of memory has room for {in_units(room_bytes)} of them. Store the data again with chunks "
        "alike, for example x.rechunk(y.chunks).to_zarr('x_rechunked.zarr'); or, where an array "
        "lacks a dimension of y, with longer chunks of y along that."
    )


def callback_not_callable(value: object) -> InputTypeError:
    return InputTypeError(
        f"callback = {value!r} cannot be called: pass a function callback(intermediate_result), "
        "which may raise StopIteration to end the fit."
    )


def verbose_invalid(value: object) -> InputError:
    return InputError(
        f"verbose = {value!r}: pass 0 for silence, 1 for a report at the end, or 2 for a line at "
        "every evaluation."
    )


def guess_failed(model: str, cause: object) -> ModelError:
    return ModelError(
        f"the guess of the model {model} failed ({cause}): pass p0, one starting value a parameter."
    )


def checkpoint_not_a_path(value: object) -> InputTypeError:
    return InputTypeError(
        f"checkpoint = {value!r} is no path: pass the name of a directory, which is made if there "
        "is none."
    )


def not_a_client(value: object) -> InputTypeError:
    return InputTypeError(
        f"client = {shown(value)} is no distributed.Client: pass one, or None for the active one."
    )


def cluster_as_client(value: object) -> InputTypeError:
    return InputTypeError(
        f"client = {shown(value)} is a cluster: pass a client of it, client=cluster.get_client()."
    )


def client_not_running(status: object) -> InputError:
    return InputError(
        f"the client is {status}: pass a client that is connected, distributed.Client(address)."
    )


def client_asynchronous() -> InputError:
    return InputError(
        "the client is asynchronous, or fit was called in the thread of its event loop, which a "
        "fit would block: pass distributed.Client(..., asynchronous=False), and call fit in "
        "another thread, as with asyncio.to_thread(fit, ...)."
    )


def workers_differ(name: str, here: object, there: Mapping[str, object]) -> InputError:
    few = [f"{address} has {version or 'none'}" for address, version in there.items()]
    return InputError(
        f"this process has {name} {here}, and the workers have others ({join_names(few)}), so that "
        "they cannot run this fit, or with other bits: install the same versions everywhere."
    )


def vectors_narrow(workers: Sequence[str], bits: int) -> tuple[str, str]:
    """The note for the log, and a short one for the line of progress."""
    text = (
        f"workers get no groups of this fit, since their vectors are narrower than its {bits} bits "
        f"and round otherwise: {join_names(workers)}. Start workers on processors with AVX-512, or "
        "begin the fit anew, for the width that all workers have."
    )
    return text, f"workers with narrow vectors, not used: {len(workers)}"


def no_wide_worker(workers: Sequence[str], bits: int, option: str) -> ClusterError:
    return ClusterError(
        f"the fit began with vectors of {bits} bits (AVX-512), and no worker that is left has them "
        f"({join_names(workers)}): start a worker that has them, give it longer by the option "
        f"{option} of Dask's configuration, or begin the fit anew."
    )


def vectors_narrower_than_before(bits: int, before: int) -> str:
    return (
        f"the checkpoint was computed with vectors of {before} bits (AVX-512), which not all "
        f"processors of this fit have. The fit goes on with {bits} bits, and its answer may differ "
        "in the last digits: resume where all processors have AVX-512 for the same digits."
    )


def forked_after_fit() -> ForkError:
    return ForkError(
        "this process was forked from one that had fitted before, and JAX, Dask and Zarr hang in "
        "such a process, as their threads are not forked: start processes by "
        "multiprocessing.get_context('spawn') or 'forkserver', or fork before the first fit."
    )


# Advice of a plan: chunks that make a fit slower than it need be, and the call that helps.


def chunks_small(blocks: int, block_bytes: float, calls: str) -> str:
    return (
        f"{blocks:,} blocks of {in_units(block_bytes)} on average: opening and planning them costs "
        f"more than reading them. Pass joined chunks: {calls}; or store the data again in such "
        "chunks."
    )


def chunks_differ(
    grids: Mapping[str, tuple[int, ...]], repeated: float, held: float, calls: str, stored: bool
) -> str:
    cuts = ", ".join(f"{name} {chunks}" for name, chunks in grids.items())
    costs = []
    if repeated:
        costs.append(f"{in_units(repeated)} are read twice in every pass, where tasks meet")
    if held:
        costs.append(f"{in_units(held)} are kept in memory, since many tasks need them")
    what = ", and ".join(costs) or "blocks are cut wherever either of them is"
    how = "Store the data again, cut alike" if stored else "Pass all cut alike"
    return f"the chunks do not match ({cuts}): {what}. {how}: {calls}."


def zarr_chunks_cut(
    name: str,
    chunks: tuple[int, ...],
    stored: tuple[int, ...],
    repeats: float,
    wanted: tuple[int, ...],
) -> str:
    """Dask reads pieces of Zarr chunks, each of which decodes the whole chunk."""
    return (
        f"{name} is read in Dask chunks of {chunks}, which cut the Zarr chunks of {stored} they "
        f"come from: each Zarr chunk is decoded {repeats:.3g} times in every pass. Pass whole "
        f"ones as {name}: da.from_zarr(store, chunks={wanted}), or the zarr.Array itself."
    )


def workers_idle(tasks: int, threads: int, calls: str, stored: bool) -> str:
    each = "1 task" if tasks == 1 else f"{tasks} tasks"
    how = "Store the data again in smaller chunks" if stored else "Pass the data cut smaller"
    return (
        f"a pass has {each} for {threads} threads, {threads - tasks} of which idle. {how}: {calls}."
    )


def memory_exceeded(planned: float, available: float, fixed: float) -> str:
    return (
        f"the fit may take {in_units(planned)}, of which {in_units(fixed)} are for the program "
        f"itself whatever the data are, but {in_units(available)} are to be used: raise "
        "memory_limit_gb, on a cluster the memory of the workers, or expect more to be taken."
    )


def no_workers() -> str:
    return (
        "no worker has joined the cluster yet, so that nothing is known of its memory and speed: "
        "plan again after client.wait_for_workers(1)."
    )


COLLAPSE_OF_CORRELATED = "sigma is a covariance matrix, by which all rows depend on each other"

COLLAPSE_OF_DEPENDENT_ROWS = "a value of the model depends on more than the coordinates of its row"


def collapse_of_loss(loss: str) -> str:
    return f"loss={loss!r} depends on each residual, and only sums of squares follow from means"


def collapse_without_broadcast(shape: tuple[int, ...]) -> str:
    return (
        f"the coordinates vary along every dimension of y, which has the shape {shape}. Pass "
        "coordinates that broadcast, as x[:, None] for y of the shape (time, pixel)"
    )


def collapse_of_few(n_distinct: int, n_rows: int) -> str:
    return (
        f"{n_rows:,} rows have {n_distinct:,} distinct coordinates, which is over a tenth of them"
    )


def collapse_too_large(n_distinct: int, needed: float, limit: float) -> str:
    return (
        f"the means at {n_distinct:,} distinct coordinates need {in_units(needed)} of memory with "
        f"the reading, and the budget has {in_units(limit)}: raise memory_limit_gb"
    )


def not_collapsible(reason: str) -> InputError:
    return InputError(
        f"collapse=True is impossible: {reason}. Pass collapse='auto' or False to sum over all "
        "rows in every pass."
    )
