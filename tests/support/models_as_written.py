"""Models that JAX could read as something else than NumPy does, each with parameters of its own."""

import numpy as np

PARAMS = np.array([2.0, 0.7, 0.4])
TABLE = np.linspace(0.0, 1.0, 5)


def added(z, c):
    z += c
    return z


def helper_on_two_names(x, a, b, c):
    y = a * x
    z = added(y, c)
    return y + b * z**2


def list_of_parts(x, a, b, c):
    parts = [a * x, b * x**2]
    for part in parts:
        part += c  # noqa: PLW2901
    return parts[0] + parts[1]


def swapped_names(x, a, b, c):
    y, z = a * x, x**2
    y, z = z, y
    y *= c
    return y + z**2 + b


def x_changed_by_a_helper(x, a, b, c):
    t = added(x, -c)
    return a * t + b * x**2


def two_names_in_a_dictionary(x, a, b, c):
    terms = {"first": a * x}
    terms["second"] = terms["first"]
    terms["second"] += c
    return terms["first"] + b * x**2


def attribute_of_an_object(x, a, b, c):
    class Held:
        value = a * x

    kept = Held.value
    kept -= c
    return Held.value + b * x**3


def default_argument(x, a, b, c):
    y = a * x

    def shifted(y=y):
        y *= c
        return y

    return shifted() + y + b * x**2


def chained_assignment(x, a, b, c):
    y = z = a * x
    z /= 1.0 + c
    return y + b * x**2


def with_exp(x, a, b, c):
    y = a * np.exp(-x)
    z = y
    z += c
    return y + b * x


def slice_changed(x, a, b, c):
    out = a * np.exp(-x)
    out[10:20] += b
    return out + c * x


def view_kept_and_base_changed(x, a, b, c):
    y = a * np.exp(-x)
    half = y[: len(y) // 2]
    y += b
    return y * c + half.sum() / len(y)


def view_changed_by_a_loop(x, a, b, c):
    parts = np.stack([a * x, b * x**2])
    for part in parts:
        part += c  # noqa: PLW2901
    return parts.sum(0)


def row_of_a_table(x, a, b, c):
    out = np.stack([a * x, b * np.cos(x), x])
    out[1] += c * x**2
    out[np.int64(2)] += a
    return out.sum(axis=0)


def transposed_column(x, a, b, c):
    table = np.stack([a * x, b * np.exp(-x)])
    column = table.T
    column[:, 0] += c
    return table.sum(0)


def real_part(x, a, b, c):
    z = a * np.exp(1j * b * x)
    z.real += c
    return np.abs(z)


def imaginary_part(x, a, b, c):
    z = a * np.exp(1j * b * x)
    z.imag *= c
    return np.abs(z) + z.real


def nan_replaced_in_place(x, a, b, c):
    y = np.log(np.where(x > 1.0, x, np.nan)) * a
    np.nan_to_num(y, copy=False)
    return y + b * x + c * x**2


def sorted_in_place(x, a, b, c):
    y = a * np.sin(3 * x)
    y.sort()
    return y + b * x + c


def half_by_hsplit(x, a, b, c):
    y = a * np.exp(-x)
    first = np.hsplit(y, 2)[0]
    first += b
    return y + c * x


def part_by_array_split(x, a, b, c):
    y = a * np.exp(-x)
    np.array_split(y, 3)[1][...] = b
    return y + c * x


def reversed_view(x, a, b, c):
    y = a * np.exp(-x)
    y[::-1][:7] += b
    return y + c * x


def flipped(x, a, b, c):
    y = a * np.exp(-x)
    back = np.flip(y)
    back[0] = b
    return y + c * x


def new_axis(x, a, b, c):
    y = a * np.exp(-x)
    column = y[:, None]
    column += b
    return y + c * x


def reshaped_rows(x, a, b, c):
    y = a * np.exp(-x)
    y.reshape(-1, 1)[3:5] = b
    np.ravel(y)[7] = c
    return y + c * x


def copied_where(x, a, b, c):
    y = a * np.exp(-x)
    np.copyto(y, b * x, where=x > 1.0)
    return y + c


def written_by_out(x, a, b, c):
    y = a * np.exp(-x)
    np.clip(y, b, None, out=y)
    np.add(y, c, out=y)
    return y


def view_of_a_view(x, a, b, c):
    y = a * np.exp(-x)
    y[4:30][2:9:3] *= 1.0 + b
    return y + c * x


def all_replaced(x, a, b, c):
    out = a * x
    other = out
    out[...] = b * x + np.sqrt(c + x) + a
    return other


def columns_swapped(x, a, b, c):
    table = np.outer(x, TABLE) * a
    table[:, [0, 1]] = table[:, [1, 0]]
    table[:, 2] -= b * x**2
    return table[:, 2] + table[:, 0] + c


def squeezed(x, a, b, c):
    column = (a * np.exp(-x))[:, None]
    flat = np.squeeze(column)
    flat += b
    return column[:, 0] + c * x


def moved_axis(x, a, b, c):
    table = np.outer(x, TABLE) * a
    np.moveaxis(table, 0, 1)[2] += b
    table.swapaxes(0, 1)[3] *= c
    return table.sum(axis=1)


OPERATORS = [
    helper_on_two_names,
    list_of_parts,
    swapped_names,
    x_changed_by_a_helper,
    two_names_in_a_dictionary,
    attribute_of_an_object,
    default_argument,
    chained_assignment,
]
IN_PLACE = [
    *OPERATORS,
    with_exp,
    slice_changed,
    view_kept_and_base_changed,
    view_changed_by_a_loop,
    row_of_a_table,
    transposed_column,
    real_part,
    imaginary_part,
    nan_replaced_in_place,
    sorted_in_place,
    half_by_hsplit,
    part_by_array_split,
    reversed_view,
    flipped,
    new_axis,
    reshaped_rows,
    copied_where,
    written_by_out,
    view_of_a_view,
    all_replaced,
    columns_swapped,
    squeezed,
    moved_axis,
]
