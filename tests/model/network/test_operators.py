"""Tab. 1: the formulas say what they are read from, and what is counted of real layers is what their formulas say."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from rwkvfusion.model.network.operators import WINDOW, Attention, Formula, operators

WIDTH, SIZE = 32, (24, 40)


def test_formulas_are_written_as_the_paper_writes_them_and_give_their_values() -> None:
    letters = {"L": 6, "N": 4, "D": 5, "k": 3}
    vmamba = Formula("1/16 L N N + 2 L N D")
    assert str(vmamba) == "LN²/16 + 2LND"
    assert vmamba(letters) == 6 * 16 / 16 + 2 * 6 * 4 * 5
    assert str(Formula("k k N + L L")) == "k²N + L²"


def test_what_is_counted_is_what_the_layers_formulas_say() -> None:
    rows = {row["operator"]: row for row in operators(SIZE, WIDTH)}
    tokens, c = SIZE[0] * SIZE[1], WIDTH
    conv = rows["3x3 convolution"]
    assert conv["counted_parameters"] == conv["parameters"]["value"] == 9 * c * c
    assert conv["counted_flops"] == conv["flops"]["value"] == 9 * tokens * c * c
    # Four linear layers, and two products with the matrix of L x L.
    assert rows["attention"]["counted_parameters"] == 4 * c * c
    assert rows["attention"]["counted_flops"] == 4 * tokens * c * c + 2 * tokens**2 * c
    assert rows["window attention"]["counted_flops"] == 4 * tokens * c * c + 2 * tokens * WINDOW**2 * c
    # 16 C² of the linear layers on 2C channels, 6 C² of the channel mixing, decay and bonus, two norms; 26 L C: eq. 14.
    assert rows["BRWKV"]["counted_parameters"] == 22 * c * c + 4 * c + 2 * c
    assert rows["BRWKV"]["counted_flops"] == tokens * (22 * c * c + 26 * c)
    assert rows["VMamba"]["counted_flops"] is None


def test_a_map_is_padded_to_whole_windows() -> None:
    padded, whole = (operators(size, WIDTH) for size in ((17, 33), (24, 40)))
    assert padded == whole


def test_attention_in_windows_sees_no_other_window() -> None:
    torch.manual_seed(0)
    windows, whole, x = Attention(8, WINDOW), Attention(8), torch.randn(1, *SIZE, 8)
    changed = x.clone()
    changed[:, :WINDOW, :WINDOW] += 1
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        near = (windows(x) - windows(changed)).abs().sum(dim=(0, 3)) > 0
        far = (whole(x) - whole(changed)).abs().sum(dim=(0, 3)) > 0
    assert near[:WINDOW, :WINDOW].all()
    assert near.sum() == WINDOW**2
    assert far.all()
