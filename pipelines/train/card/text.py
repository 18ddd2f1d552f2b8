"""The words of a model's card: README.md, as hubs read it, and the short form that MLflow shows with the version."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rwkvfusion.infra.errors import redacted
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.metrics.paired import ALPHA
from rwkvfusion.model.names import CHAMPION
from rwkvfusion.model.network.complexity import parameters
from rwkvfusion.model.registry.measured import PYFUNC, Costs
from rwkvfusion.model.training.survey import Seen
from rwkvfusion.pipelines.evaluate.report.terminal import described, pairs
from rwkvfusion.pipelines.train.card.examples import Example
from rwkvfusion.pipelines.train.job import TrainJob
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.result import Chosen
from rwkvfusion.pipelines.train.scores import MODEL, FinalScores
from rwkvfusion.stages.dataset.origin import SCORED, TRAINED, UNKNOWN, VALIDATED, Method, Origin
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.guidance.chain import BUILTIN

README, RECIPE, EVALUATION, EXAMPLES = "README.md", "recipe.yaml", "evaluation", "examples"
"""Files and folders of a card."""
_MIB = 2**20
_ELSEWHERE = {"output", "address", "max_failures", "tracking"}
"""What of a recipe is about places, not about the model."""


@dataclass(frozen=True)
class Facts:
    """All that a card says.

    Args:
        job: the training. fuser: what is registered.
        steps: that were made. best: of which validation the weights are; None: of the last step.
        origins: of the pairs, by what they were taken for.
        scores: of the end. report: `results.json` of its evaluation; empty where nothing was scored.
        seen: what the scored pairs are like.
        examples: pictures of pairs.
        costs: of a picture of height and width `size`, by the way to use the model; none where it was not measured.
        notes: what a person should know besides.
    """

    job: TrainJob
    fuser: Fuser
    steps: int
    best: Chosen | None
    origins: Mapping[str, Sequence[Origin]]
    scores: FinalScores
    report: Mapping[str, Any]
    seen: Seen | None
    examples: Sequence[Example]
    costs: Mapping[str, Costs]
    size: tuple[int, int]
    notes: Sequence[str] = ()

    @property
    def recipe(self) -> TrainRecipe:
        return self.job.plan.recipe

    @property
    def name(self) -> str:
        """Of the registered model."""
        return self.job.plan.model_name

    @property
    def title(self) -> str:
        """What it does, in a sentence."""
        config = self.fuser.config
        return f"Fuses {' and '.join(config.roles).replace('|', ' or ')} pictures ({TASKS[config.task].title})."


@dataclass(frozen=True)
class _Row:
    """A metric of the scores."""

    name: str
    is_better: bool
    """Than the best trivial answer, by the mean."""
    n: int
    mean: str
    interval: str
    trivial: str

    @property
    def cells(self) -> tuple[str, ...]:
        mean = f"**{self.mean}**" if self.is_better else self.mean
        return self.name, str(self.n), mean, self.interval, self.trivial


def readme(facts: Facts) -> str:
    """The card as Markdown."""
    config, plan = facts.fuser.config, facts.job.plan
    roles = [role.partition("|")[0] for role in config.roles]
    files = ", ".join(f'"{role.upper()}.{"tif" if TASKS[config.task].sharpens else "png"}"' for role in roles)
    lines = [
        _head(facts),
        f"# {facts.name}",
        "",
        f"{facts.title} {_made(facts)}",
        "",
        "    import rwkvfusion",
        "",
        f'    fuse = rwkvfusion.load("models:/{facts.name}@{plan.recipe.register_as.alias}")',
        f'    fuse({files}, out="FUSED.{"tif" if TASKS[config.task].sharpens else "png"}")',
        "",
        f"`mask=` and `caption=` guide it. {'' if facts.fuser.network.config.use_mask else 'It has no use for masks. '}"
        "`rwkvfusion lineage FUSED.png` leads from a picture to this version, its run and its data;"
        f" `rwkvfusion promote {facts.name} --why VERSION` says what became of it as a candidate for"
        f" `@{CHAMPION}`, with reports of the comparisons, in the run `promotions of {facts.name}@{CHAMPION}`.",
        "",
        "## Limits",
        "",
        *(f"- {line}" for line in limits(facts)),
        "",
        "## Scores",
        "",
        *_scores(facts),
        "## Examples",
        "",
        *_examples(facts),
        "## What a picture costs",
        "",
        *_costs(facts),
        "## Data",
        "",
        *_data(facts),
        "## Training",
        "",
        *_training(facts),
        "## Licence",
        "",
        *_licence(facts),
    ]
    return redacted("\n".join(lines) + "\n")


def summary(facts: Facts) -> str:
    """The card in short, for the version's description, which has room for 5,000 characters."""
    made = [facts.title, _made(facts)]
    trained = "; ".join(_of(origin) for origin in facts.origins[TRAINED])
    rows = [row for table in _tables(facts.report) for row in table]
    lines = [" ".join(made), "", f"Trained on {trained}.", ""]
    if rows:
        lines += [f"Scores on {_scored_on(facts)}:", "", *_table(_HEADS, [row.cells for row in rows]), ""]
    lines += [*(f"- {line}" for line in limits(facts)), ""]
    lines.append(f"All of the card: `{README}` among the files of the model, with `{EVALUATION}/` and `{EXAMPLES}/`.")
    return redacted("\n".join(lines))


def limits(facts: Facts) -> Iterator[str]:
    """What the model was not shown to do, each from what is known of this one."""
    scores, seen, plan = facts.scores, facts.seen, facts.job.plan
    if scores.pairs and seen is not None:
        unscored = [one.name for one in facts.origins[TRAINED] if one.url not in scores.datasets]
        of = f"; of {' and '.join(unscored)}, which it was trained on, none" if unscored else ""
        yield f"Its scores are of {_scored_on(facts)}{of}. They say nothing of pictures from elsewhere."
        if behind := [row for table in _tables(facts.report) for row in table if not row.is_better]:
            answers = ", ".join(f"{row.name.split()[0]} ({row.trivial})" for row in behind)
            yield f"A trivial answer has a mean as good or better in {answers}."
        yield _guidance(facts, seen)
    else:
        yield "It was not scored: nothing is known of how good its pictures are."
    yield from (f"{note[0].upper()}{note[1:]}." for note in plan.validation.notes)
    yield from _sizes(facts)
    depths = sorted({*plan.survey.seen.depths, *(seen.depths if seen is not None else ())})
    yield f"Pictures of {_listed(depths)} bits were seen in training and scoring, no others."
    if plan.recipe.data.allow_incomplete:
        yield "It may have been trained on parts of datasets that were not finished (`data.allow_incomplete`)."
    yield from (f"{note[0].upper()}{note[1:]}." for note in facts.notes)


def _sizes(facts: Facts) -> Iterator[str]:
    plan, network = facts.job.plan, facts.fuser.network.config
    crops = _listed(dict.fromkeys(_by(crop) for crop in plan.recipe.data.crops))
    learnt = plan.survey.seen
    how = "whole pictures brought to" if plan.recipe.data.resize else "crops of"
    words = (
        f"It has learnt from {how} {crops} pixels, of pictures of {_range(learnt)} (of the {pairs(learnt.pairs)} that"
    )
    words += " were looked into)"
    yield words + (f", and was scored on whole ones of {_range(facts.seen)}." if facts.seen is not None else ".")
    if facts.fuser.tile_of("auto") is None:
        yield "What it does to a pixel does not depend on the picture's size" + (
            "." if network.gate_window is not None and network.decay == "token" else ", as far as is known."
        )
    else:
        depends = [
            words
            for words, is_so in (
                ("its decay is relative to the size", network.decay != "token"),
                ("its gate takes the mean of the whole", network.gate_window is None),
            )
            if is_so
        ]
        yield (
            f"What it does to a pixel depends on the picture's size ({' and '.join(depends)}): larger pictures than it"
            " has learnt from are fused in tiles of that size."
        )


def _guidance(facts: Facts, seen: Seen) -> str:
    if not seen.texts and not seen.masks:
        return "No guidance was scored: none of the scored pairs has a text or a mask."
    used = [f"a text ({seen.texts} of {seen.pairs})"] if seen.texts else []
    if seen.masks and facts.fuser.network.config.use_mask:
        used.append(f"a mask ({seen.masks} of {seen.pairs})")
    return (
        f"The scored pairs were fused with their own guidance: {' and '.join(used) or 'none that it takes'}. How it"
        " does without, or with another's, was not scored."
    )


_HEADS = ("metric", "n", "mean", "95 % interval", "best trivial answer")


def _scores(facts: Facts) -> Iterator[str]:
    scores = facts.scores
    tables = _tables(facts.report)
    if not tables:
        yield "None."
        yield ""
    for table, rows in zip(facts.report.get("tables", ()), tables, strict=True):
        yield f"On {_scored_on(facts)}, {table['comparison']}, {described(scores.convention, scores.metrics_version)}:"
        yield ""
        yield from _table(_HEADS, [row.cells for row in rows])
        yield ""
    if tables:
        yield (
            "Bold where the mean is better than that of each trivial answer (a source alone, mean, maximum ...). n:"
            " pairs that the metric is defined for. Interval: of the mean over pairs, by bootstrap; none of fewer than"
            " five."
            f" `{EVALUATION}/` has the value of every pair (`pairs.parquet`) and the whole report (`report.md`)."
        )
        yield ""
        yield f"Paired tests at {100 * ALPHA:g} %, by Holm for all metrics:"
        yield ""
    lines = (*(scores.verdicts if tables else ()), *scores.notes)
    yield from (f"- {line}" for line in lines)
    yield from [""] if lines else []


def _scored_on(facts: Facts) -> str:
    scores = facts.scores
    names = [one.name for one in facts.origins[SCORED]]
    splits = f"split{'s' if len(scores.splits) > 1 else ''} {_listed(scores.splits)}"
    trained_on = set(scores.splits) & set(facts.recipe.data.splits)
    return f"{pairs(scores.pairs)} of {splits} of {_listed(names)}" + ("" if trained_on else ", not trained on")


def _tables(report: Mapping[str, Any]) -> list[list[_Row]]:
    """Of each comparison the metrics that some pair has."""
    return [[*_rows(table)] for table in report.get("tables", ())]


def _rows(table: Mapping[str, Any]) -> Iterator[_Row]:
    own = table["systems"][MODEL]
    for name, metric in table["metrics"].items():
        sign = 1 if metric["better"] == "higher" else -1
        means = {system: row[name]["mean"] for system, row in table["systems"].items() if row[name]["mean"] is not None}
        if MODEL not in means:
            continue
        mean = means.pop(MODEL)
        best = max(means, key=lambda system: sign * means[system], default=None)
        low, high = own[name]["low"], own[name]["high"]
        yield _Row(
            name=f"{name} {'↑' if sign > 0 else '↓'}",
            is_better=best is None or sign * mean > sign * means[best],
            n=own[name]["n"],
            mean=f"{mean:.4g}",
            interval="" if low is None or high is None else f"{low:.4g} to {high:.4g}",
            trivial="" if best is None else f"{best}: {means[best]:.4g}",
        )


def _examples(facts: Facts) -> Iterator[str]:
    for one in facts.examples:
        yield f"{one.words}: from left to right {', '.join((*facts.job.plan.survey.example.roles, 'fused'))}."
        yield ""
        yield f"![{one.name}]({EXAMPLES}/{one.name}.png)"
        yield ""
    if not facts.examples:
        yield "None could be made."
        yield ""


def _costs(facts: Facts) -> Iterator[str]:
    if not facts.costs:
        yield "It was not measured (`register.measure`)."
        yield ""
        return
    heads = ("way", "picture", "start-up", "p50", "p95", "pictures", "peak memory", "load before")
    rows = [
        (
            f"`{way}`", _by(facts.size), f"{costs.start_up:.2f} s", _time(costs.p50), _time(costs.p95),
            str(costs.calls),
            "not known" if costs.peak is None else f"{costs.peak / _MIB:,.0f} MiB",
            "not known" if costs.load is None else f"{costs.load:.1f}",
        )
        for way, costs in facts.costs.items()
    ]  # fmt: skip
    yield from _table(heads, rows)
    yield ""
    one = next(iter(facts.costs.values()))
    threads = "1 thread" if one.threads == 1 else f"{one.threads} threads"
    yield (
        f"Each in a process of its own on the CPU ({one.processor}, {one.cores} cores, {threads}), encoded pictures in,"
        f" PNG out, without guidance; `{PYFUNC}` is what MLflow's servers do with a request. Start-up is from the start"
        " of the process, imports and all, to its first picture; p50 and p95 are of the pictures after it; memory is"
        " that of the whole process; load is the machine's own in the minute before."
    )
    yield ""


def _data(facts: Facts) -> Iterator[str]:
    heads = ("pairs", "dataset", "splits", "number", "shards", "fingerprint")
    rows = [
        (use, _plain(one.url), _listed(one.splits), str(one.pairs), str(len(one.shards)), f"`{one.fingerprint}`")
        for use, origins in facts.origins.items()
        for one in origins
    ]
    yield from _table(heads, rows)
    yield ""
    yield "The run's `data.json` names every shard with its SHA-256."
    yield ""
    yield "Guidance of these pairs:"
    yield ""
    methods: dict[Method, dict[str, None]] = {}
    for origins in facts.origins.values():
        for one in origins:
            for identity in one.stages:
                methods.setdefault(Method.of(identity), {})[one.name] = None
    if methods:
        cells = [(*map(_plain, method), _listed(names)) for method, names in methods.items()]
        yield from _table(("stage", "method", "model", "weights (SHA-256)", "of"), cells)
        if any(method.method.partition(",")[0] in BUILTIN for method in methods):
            yield ""
            yield "The built-in methods measure the pictures; they do not recognise objects."
    else:
        yield "none that is noted."
    yield ""


def _training(facts: Facts) -> Iterator[str]:
    best, recipe = facts.best, facts.recipe
    chosen = "The weights are the running average at the last step."
    if best is not None:
        validated = " and ".join(f"{pairs(one.pairs)} of {one.name}" for one in facts.origins[VALIDATED])
        chosen = (
            f"The weights are the running average at step {best.step}, the best of the validations on {validated}"
            f" by {best.metric} ({best.value:.4g})."
        )
    init = f" It began with the weights of {recipe.init}." if recipe.init else ""
    yield f"{facts.steps} steps, from seed {recipe.seed}.{init} {chosen}"
    yield ""
    yield (
        f"Run `{facts.job.run.run_id}` of the experiment {facts.job.run.experiment} has the curves. The recipe, where"
        f" it departs from the defaults (`{RECIPE}` has all of it):"
    )
    yield ""
    yield "```yaml"
    yield as_yaml(recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=_ELSEWHERE)).rstrip()
    yield "```"
    yield ""


def _licence(facts: Facts) -> Iterator[str]:
    yield (
        "The code that makes and runs the model is Apache-2.0. The weights were learnt from the pictures of these"
        " sources, whose licences say what may be done with what is made of them:"
    )
    yield ""
    sources = {(one.name, one.source, one.licence) for origins in facts.origins.values() for one in origins}
    for name, source, licence in sorted(sources, key=str):
        of = f" ({_plain(source)})" if source else ""
        known = "not noted: ask its source" if licence == UNKNOWN else _plain(licence)
        yield f"- {_plain(name)}{of}: {known}"


def _head(facts: Facts) -> str:
    """What hubs read."""
    known = {one.licence for origins in facts.origins.values() for one in origins}
    text = as_yaml(
        {
            "license": known.pop() if len(known) == 1 else "other" if UNKNOWN not in known else UNKNOWN,
            "library_name": "rwkvfusion",
            "pipeline_tag": "image-to-image",
            "tags": ["image-fusion", facts.fuser.config.task, "rwkvfusion", "mlflow"],
        }
    )
    return f"---\n{text}---\n"


def _made(facts: Facts) -> str:
    code = f"rwkvfusion {package_version()}" + (f", commit `{commit()}`" if commit() else "")
    return (
        f"A network of {parameters(facts.fuser.network):,} parameters (SHA-256 of the weights"
        f" `{facts.fuser.weights_sha256}`), trained by {code}, in the run `{facts.job.run.run_id}`."
    )


def _of(origin: Origin) -> str:
    splits = _listed(origin.splits)
    return f"{pairs(origin.pairs)} of split {splits} of {origin.url} (fingerprint `{origin.fingerprint[:12]}`)"


def as_yaml(value: Mapping[str, Any]) -> str:
    """Plain values in their order."""
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=100)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _range(seen: Seen) -> str:
    sizes = dict.fromkeys(_by(size) for size in (seen.smallest, seen.largest))
    return f"{' to '.join(sizes)} pixels"


def _listed(values: Any) -> str:
    *most, last = [str(value) for value in values] or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def _plain(text: str) -> str:
    """A text as Markdown shows it word for word, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(text.split()))
