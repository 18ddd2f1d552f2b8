"""What no program can find out about a shipped model: what it is for, its licence, what it is weak at."""

from __future__ import annotations

from dataclasses import dataclass

_OURS = "Apache-2.0, as the package"
_RESEARCH = "their owners publish it for research and state no licence"
_VIF = (
    "MSRS (168 pairs of the official test and train lists, none of them scored here) and RoadScene (168 pairs), "
    + _RESEARCH
)


@dataclass(frozen=True)
class Described:
    """In words; `about` and `weak` are Markdown."""

    title: str
    about: str
    weak: str
    trained_on: str
    command: str
    licence: str = _OURS


def _command(name: str, *datasets: str, sharp: tuple[str, ...] = ()) -> str:
    told = " ".join([f"--dataset out/{one}" for one in datasets] + [f"--sharp out/{one}" for one in sharp])
    return f"python -m rwkvfusion.pipelines.ship.run {name} {told} --set TITLE=URL,SPLIT"


DESCRIBED = {
    "vif": Described(
        "visible and infrared pictures of streets, by day and night",
        "The visible picture with what only the infrared one shows: people, cars and hot spots stand out, colours stay"
        " those of the visible picture. Both pictures must show the same pixels of the scene.",
        "No published figure on MSRS's official test list may be set beside it: it was trained on pairs of that list."
        " In dark sky and asphalt it hands on what noise the infrared camera has, about as the maximum of the two does."
        " A mask makes objects stand out more and costs a little of MI and VIF; a caption changes nothing measurable.",
        _VIF,
        _command("vif", "msrs", "roadscene"),
    ),
    "vif-tiny": Described(
        "the same in a tenth of a second on one CPU thread",
        "For video and small machines: an eighth of the parameters of `vif`.",
        "A little less of the edges than `vif` keeps. The rest as of `vif`: trained on pairs of MSRS's official test"
        " list, noise of the infrared camera stays.",
        _VIF,
        _command("vif-tiny", "msrs", "roadscene"),
    ),
    "mif": Described(
        "MRI with CT, PET or SPECT slices of the brain",
        "The MRI's tissue with the other's bone or activity; the colours of PET and SPECT stay. Not for diagnosis.",
        "Trained on slices of one atlas, 256x256, eight bits. Where PET or SPECT is bright, MRI's fine structure is"
        " fainter than in the MRI alone.",
        f"Harvard's Whole Brain Atlas (408 pairs of other cases), {_RESEARCH}",
        _command("mif", "harvard"),
    ),
    "mef": Described(
        "an under- and an over-exposed picture of one scene",
        "Light between the two, detail of either. It never saw two real exposures: they are made of photographs, by a"
        " camera's curve and under another light.",
        "Things that move between the exposures leave ghosts. Where both pictures are black or white nothing can"
        " be had. Few pairs: the figures have wide intervals.",
        f"exposures made of 213 photographs of NYU Depth v2, RoadScene and MSRS by day, {_RESEARCH}",
        _command("mef", "nyud", "roadscene", "msrs"),
    ),
    "mff": Described(
        "two pictures of one scene with the focus near and far",
        "Of every place the picture that is in focus.",
        "At the edge of something near and out of focus, whose blur covers what is behind it, neither picture is sharp,"
        " and the fused one has a faint rim.",
        "83 triplets of NYU Depth v2 with a made focus, and a focus made of 258 photographs of MSRS by day and"
        f" RoadScene at half their size, {_RESEARCH}",
        _command("mff", "nyud", sharp=("msrs", "roadscene")),
    ),
    "pansharpening-ge1": Described(
        "GeoEye-1: panchromatic and multispectral, four bands, four times the resolution",
        "PAN first, then MS with 4 bands. Trained and scored by Wald's protocol on parts of one scene, 320x320 pixels"
        " of MS: it is what one scene gives, fit for this sensor and this kind of landscape.",
        "One scene: other landscapes, seasons and sensors were never seen. Full resolution has no truth to score by.",
        "three quarters of one GeoEye-1 scene of 1280x1280 pixels of PAN (GRIP-UNINA, for non-profit use only)",
        "rwkvfusion train train_pansharpening_small.yaml --set data.url=out/ge1 --set steps=1500 --set workers=1",
        "for non-profit use only, as the scene it was trained on",
    ),
    "pansharpening-gf2": Described(
        "Gaofen-2: panchromatic and multispectral, four bands, four times the resolution",
        "PAN first, then MS with 4 bands. Trained on one tile of 256x256 pixels and scored on another: a start to train"
        " on from, no more.",
        "One tile. What is not like it (water, snow, forests) was never seen.",
        f"one tile of PSData3's GF-2 scenes, {_RESEARCH}",
        "rwkvfusion train train_pansharpening_small.yaml --set data.url=out/gf2 --set steps=1500 --set workers=1",
    ),
}
