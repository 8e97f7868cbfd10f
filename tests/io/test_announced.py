"""Blocks that are not what their array announces end in an error that names them."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import InputError, InputTypeError, fit, fit_models, plan

N = 240


def plane(x, a, b):
    u, v = x
    return a * u + b * v


def shorter(block):
    return block[:-1]


def longer(block):
    return np.concatenate([block, block[:1]])


def one_row(block):
    return block[:1]


def half_of_the_last_axis(block):
    return block[..., : -(-block.shape[-1] // 2)]


def summed(block):
    return block.sum()


def of_more_dimensions(block):
    return block[None]


LIES = (shorter, longer, one_row, summed, of_more_dimensions)
NAMES = ("x[0]", "x[1]", "y", "sigma", "mask")


def arrays(chunks, shape=(N,)):
    """Data of a fit by name, in chunks of their own."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, *shape))
    values = {"x[0]": u, "x[1]": v, "y": 2 * u - v, "sigma": np.ones(shape)}
    values["mask"] = np.zeros(shape, bool)
    return {name: da.from_array(values[name], chunks=chunks[name]) for name in NAMES}


def lying(array, lie, number):
    """The array with one block that is not as announced, or with all for number None."""

    def of_block(block, block_id=None):
        if number is None or block_id[0] == number % array.numblocks[0]:
            return lie(block)
        return block

    return array.map_blocks(of_block, dtype=array.dtype, chunks=array.chunks, meta=array._meta)


def call(function, data, **options):
    x = (data["x[0]"], data["x[1]"])
    return function(
        plane, x, data["y"], [1.0, 1.0], sigma=data["sigma"], mask=data["mask"], **options
    )


def says(raised, name):
    text = str(raised.value)
    assert text.startswith("block (")
    assert f" of {name}, which is {name}[" in text
    assert "], has shape (" in text
    assert f"but {name} announces (" in text
    assert "map_blocks" in text
    assert "compute_chunk_sizes()" in text


@pytest.mark.slow
@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    lie=st.sampled_from(LIES),
    number=st.integers(0, 7) | st.none(),
    chunks=st.fixed_dictionaries({name: st.sampled_from([30, 60, 77, N]) for name in NAMES}),
    scheduler=st.sampled_from(["synchronous", "threads"]),
    pilot=st.booleans(),
)
def test_every_array_is_compared_whatever_the_chunks(name, lie, number, chunks, scheduler, pilot):
    data = arrays(chunks)
    data[name] = lying(data[name], lie, number)
    with dask.config.set(scheduler=scheduler), pytest.raises(InputError) as raised:
        call(fit, data, pilot=pilot)
    says(raised, name)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    name=st.sampled_from(("x[0]", "x[1]", "sigma", "mask")),
    lie=st.sampled_from([*LIES, half_of_the_last_axis]),
    kept=st.fixed_dictionaries({n: st.sampled_from([(0,), (1,), (2,), (0, 1, 2)]) for n in NAMES}),
    rows=st.integers(1, 6),
)
def test_arrays_that_broadcast_are_compared(name, lie, kept, rows):
    data = arrays(dict.fromkeys(NAMES, (2, 3, 5)), (6, 6, 10))
    data["y"] = data["y"].rechunk((rows, 6, 5))
    for other in set(NAMES) - {"y"}:
        index = tuple(slice(None) if d in kept[other] else slice(0, 1) for d in range(3))
        data[other] = data[other][index]
    block = np.empty(tuple(map(max, data[name].chunks)))
    if np.shape(lie(block)) == block.shape:  # one row of one row
        return
    data[name] = lying(data[name], lie, None)
    with pytest.raises(InputError) as raised:
        call(fit, data)
    says(raised, name)


def test_the_error_names_the_block_and_both_lengths():
    data = arrays(dict.fromkeys(NAMES, 30))
    data["x[1]"] = lying(data["x[1]"], longer, 3)
    what = r"of x\[1\], which is x\[1\]\[90:120\], has shape \(31,\), but x\[1\] announces \(30,\)"
    with pytest.raises(InputError, match=rf"^block \(3,\) {what}"):
        call(fit, data)
    for others in (45, 100):  # the latter cuts the block, which would hide that it is longer
        data["y"] = data["y"].rechunk(others)
        with pytest.raises(InputError, match=what):
            call(fit, data)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda data: call(plan, data, time=True), id="dry run"),
        pytest.param(
            lambda data: fit_models(
                [plane, plane], (data["x[0]"], data["x[1]"]), data["y"], p0=[[1, 1], [1, 1]]
            ),
            id="several models",
        ),
        pytest.param(lambda data: call(fit, data, n_starts=3), id="several starts"),
        pytest.param(
            lambda data: (
                call(fit, arrays(dict.fromkeys(NAMES, 30)))
                .predict((data["x[0]"], data["x[1]"]))
                .compute()
            ),
            id="prediction",
        ),
    ],
)
def test_whatever_reads_compares(function):
    data = arrays(dict.fromkeys(NAMES, 30))
    data["x[0]"] = lying(data["x[0]"], one_row, None)
    with pytest.raises(InputError) as raised:
        function(data)
    says(raised, "x[0]")


def complex_numbers(block):
    return block + 1j


def texts(block):
    return block.astype(str)


def counts(block):
    return block.astype(int)


@pytest.mark.parametrize(
    ("name", "lie"),
    [("y", complex_numbers), ("x[0]", complex_numbers), ("sigma", texts), ("mask", counts)],
)
def test_blocks_of_other_kinds_of_values_are_refused(name, lie):
    data = arrays(dict.fromkeys(NAMES, 30))
    data[name] = lying(data[name], lie, 2)
    with pytest.raises(InputTypeError, match=r"block \(2,\) of .* which its array does not annou"):
        call(fit, data)


def test_rows_that_are_dropped_everywhere_and_counted_are_fitted():
    """The remedy that the error names."""
    data = arrays(dict.fromkeys(NAMES, 30))
    keep = (data["x[0]"] > 0).compute()
    counted = {name: array[da.from_array(keep, chunks=30)] for name, array in data.items()}
    for array in counted.values():
        array.compute_chunk_sizes()
    result = call(fit, counted)
    assert result.n_points == keep.sum()
    np.testing.assert_allclose(result.popt, [2, -1], rtol=1e-8)


@pytest.mark.cluster
def test_on_a_cluster(client):
    for name in ("x[0]", "mask"):
        data = arrays(dict.fromkeys(NAMES, 30) | {"y": 80})
        data[name] = lying(data[name], longer, 5)
        with pytest.raises(InputError) as raised:
            call(fit, data, client=client)
        says(raised, name)
