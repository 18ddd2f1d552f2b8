"""The command `export`. What is heavy is imported when it runs."""

from __future__ import annotations

import click

from rwkvfusion.pipelines.console import answer, phase
from rwkvfusion.pipelines.options import JSON
from rwkvfusion.pipelines.ray_job import check_output


@click.command()
@click.option(
    "--model",
    required=True,
    metavar="URI",
    help="As of `fuse`: NAME of one of `rwkvfusion models`, models:/NAME@ALIAS, runs:/RUN/PATH, or a folder.",
)
@click.option("--tracking-uri", metavar="URI", help="MLflow to ask for the model; default as MLflow's own.")
@click.option("-o", "--output", required=True, help="OUT.onnx, or OUT.pt2 for torch.export.load; a path or URL.")
@JSON
def export(model: str, tracking_uri: str | None, output: str, as_json: bool) -> None:
    """Write a model's network to one file for programs that have none of this package.

    The graph has plain operators only and takes pictures of any size, odd ones too. Its inputs are the planes that the
    network sees (of most tasks luma on 0-1), a mask and the tokens of a caption; zeros for either are none. What the
    values mean, and a program of NumPy and ONNX Runtime that makes pictures of them, lie in the file's metadata:
    `recipe` and `example`. Whole pictures: tiles are the caller's.

    An ONNX file needs `pip install 'rwkvfusion[onnx]'` to be made, and ONNX Runtime alone to be run.

    \b
    rwkvfusion export --model vif -o vif.onnx
    """
    check_output("--output", output)
    from rwkvfusion.pipelines.export.run import export_model

    with phase("exporting"):
        made = export_model(model, output, tracking_uri)
    answer(made, [made.line], as_json=as_json)
