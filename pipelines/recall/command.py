"""The command `recall`."""

from __future__ import annotations

from pathlib import Path

import click

from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.pipelines.options import check_form, scales_of
from rwkvfusion.pipelines.ray_job import check_output

# What is heavy is imported when the command runs.

_TRAINED, _GIVEN = "a training", "--detector"
_USED = {
    _TRAINED: ("train_lists", "classes", "steps", "seeds", "save_file"),
    _GIVEN: ("detector",),
}


@click.command()
@click.option(
    "--a", "folders_a", metavar="DIR", multiple=True, required=True, help="Visible pictures; may be given many times."
)
@click.option(
    "--b", "folders_b", metavar="DIR", multiple=True, required=True, help="Infrared ones; as many as --a, in its order."
)
@click.option(
    "--labels",
    metavar="DIR",
    multiple=True,
    required=True,
    help="Boxes: a file NAME.txt for each pair, as YOLO has them. Given many times, what any of them shows is there; of"
    " an object that several show, the box of the first counts.",
)
@click.option(
    "--train", "train_lists", metavar="FILE", multiple=True, help="Names of pairs to train on, a line each; many times."
)
@click.option(
    "--test", "test_lists", metavar="FILE", multiple=True, required=True, help="Names of pairs to test on; many times."
)
@click.option(
    "--fused", "fused", multiple=True, metavar="NAME=DIR", help="Fused pictures of any system; may be given many times."
)
@click.option(
    "--model", "models", multiple=True, metavar="[NAME=]URI", help="As in `fuse`; may be given many times, by NAME."
)
@click.option(
    "--classes",
    default="person,bicycle,car",
    show_default=True,
    metavar="NAMES",
    help="What the numbers of the labels mean, from 0.",
)
@click.option(
    "--false",
    "n_false",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="False detections of a class per picture at which recall is measured, in every view.",
)
@click.option("--steps", type=click.IntRange(1), default=4000, show_default=True, help="Of a training, 12 crops each.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Trainings, from seed 0 on.")
@click.option("--save", "save_file", metavar="FILE", help="Keep what was trained here, as safetensors.")
@click.option("--detector", metavar="FILE", help="Test with what --save kept, and train nothing.")
@click.option(
    "--scale", "scales", multiple=True, callback=scales_of, metavar="[ROLE=]SCALE", help="As in `evaluate`, of folders."
)
@click.option("--json", "json_file", metavar="FILE", help="Write everything here; - for stdout.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write a line for each class and view here.")
@click.option("--tracking-uri", metavar="URI", help="MLflow to ask for models; default as MLflow's own.")
@click.pass_context
def recall(
    context: click.Context,
    folders_a: tuple[str, ...],
    folders_b: tuple[str, ...],
    labels: tuple[str, ...],
    train_lists: tuple[str, ...],
    test_lists: tuple[str, ...],
    fused: tuple[str, ...],
    models: tuple[str, ...],
    classes: str,
    n_false: float,
    steps: int,
    seeds: int,
    save_file: str | None,
    detector: str | None,
    scales: dict[str, Scale],
    json_file: str | None,
    csv_file: str | None,
    tracking_uri: str | None,
) -> None:
    """Train a small detector on all views of labelled pairs, and say how many objects it finds in each.

    The views are the visible and the infrared picture, their mean and maximum, and the fused pictures of folders
    (--fused) and models (--model). One training sees equal parts of all, so that none is favoured; what differs
    between the views is what can be seen in them. An object that only one of the sources shows is to be found in all.

    Recall is measured at as many false detections per picture in every view (--false), at an IoU of 0.5, with its
    difference to the visible and to the best trivial view; AP50 beside it. Intervals are of other pictures like these
    and, with --seeds, other trainings.

    \b
    rwkvfusion recall --a data/vi --b data/ir --labels labels --train train.txt --test test.txt \\
        --fused ours=fused --model runs/last --save detector.safetensors
    rwkvfusion recall --a data/vi --b data/ir --labels labels --test test.txt --fused ours=fused \\
        --detector detector.safetensors --json recall.json --csv recall.csv
    """
    from rwkvfusion.infra.storage import Store
    from rwkvfusion.model.detection.detector import load
    from rwkvfusion.pipelines.evaluate.ask import systems_of
    from rwkvfusion.pipelines.evaluate.command import by_name
    from rwkvfusion.pipelines.recall import report
    from rwkvfusion.pipelines.recall.run import recall, train_all
    from rwkvfusion.pipelines.recall.views import TRIVIAL, Labels, Pairs, read_names

    if len(folders_a) != len(folders_b):
        raise click.UsageError(f"give as many --a as --b: there are {len(folders_a)} and {len(folders_b)}")
    if not detector and not train_lists:
        raise click.UsageError("give either --train FILE, or --detector FILE")
    check_form(context, _USED, _GIVEN if detector else _TRAINED)
    for option, output in (("--json", json_file), ("--csv", csv_file), ("--save", save_file)):
        if output and output != "-":
            check_output(option, output)
    names = tuple(name.strip() for name in classes.split(","))
    if not all(names) or len({*names}) < len(names):
        raise click.BadParameter(f"{classes!r}: give different names with commas between", param_hint="--classes")
    folders, uris = by_name(fused, "--fused"), by_name(models, "--model", "model")
    called = [*TRIVIAL, *folders, *uris]
    if twice := next((one for one in called if called.count(one) > 1), None):
        raise click.UsageError(f"two views are called {twice!r}: give each a NAME of its own")
    to_train, to_test = ([*dict.fromkeys(n for one in l for n in read_names(one))] for l in (train_lists, test_lists))
    if both := [name for name in to_test if name in set(to_train)]:
        raise click.UsageError(f"{both[0]} is on a list to train on and on one to test on: take it off one")
    detectors, facts = load(Path(detector)) if detector else (None, None)
    systems = systems_of(folders, uris, (), is_raw=True, tracking=tracking_uri, jobs=1)
    known = Labels(labels, facts.classes if facts else names)
    pairs = Pairs([*zip(folders_a, folders_b, strict=True)], known, folders, systems, scales)
    seconds = None
    if detectors is None or facts is None:
        kept = Path(save_file) if save_file else None
        detectors, facts, seconds = train_all(pairs, to_train, steps, range(seeds), kept)
    results = recall(detectors, facts, pairs, to_test, n_false, seconds)
    for file, text in ((json_file, report.to_json(results)), (csv_file, report.to_csv(results))):
        if file and file != "-":
            path = Path(file).absolute()
            Store(str(path.parent)).write(path.name, text.encode())
    click.echo(report.to_json(results) if json_file == "-" else "\n".join(report.lines(results)))
