"""Turns a sweep file into checked, frozen trials: every fault is found before any work starts."""

from dataclasses import dataclass, field

from mmx.assemble import State, hand_over
from mmx.config import RawCell, SweepSpec, TrialSpec, cells, digest
from mmx.errors import ConfigError, Fault, InputError
from mmx.model import MultimodalModel
from mmx.registry import Registry
from mmx.sweep.checks import check_cell, check_objective, check_search
from mmx.sweep.resolve import Resolver
from mmx.trial import Bench


@dataclass(frozen=True)
class Cell:
    """One combination of the axes, resolved; tuned parameters stand at their lowest until they are drawn."""

    id: str
    spec: TrialSpec
    raw: RawCell


@dataclass
class Plan:
    """A sweep's cells, with what is needed to run them."""

    sweep: SweepSpec
    registry: Registry
    bench: Bench
    cells: list[Cell] = field(default_factory=list)
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Cell id to (trainable, total) parameters."""

    @property
    def objective(self) -> dict[str, str]:
        """Figures to directions; by default the robust primary score."""
        if self.sweep.search.objective:
            return dict(self.sweep.search.objective)
        score = self.bench.dataset(self.cells[0].spec.dataset).task.scores[0]
        return {f"summary/robust_{score.name}": "maximize" if score.higher_is_better else "minimize"}


def plan_sweep(sweep: SweepSpec, registry: Registry, build: bool = True) -> Plan:
    """Resolve and check every cell (ConfigError with all faults; PluginError for a plugin's fault).

    `build`: build every different model once, which takes a while; a worker whose parent did so need not.
    """
    faults: list[Fault] = []
    plan = Plan(sweep, registry, Bench(registry))
    raw_cells = cells(sweep.trial, sweep.search, faults)
    check_search(sweep, faults)
    resolver = Resolver(sweep, registry, faults)
    for raw in raw_cells:
        before = len(faults)
        spec = resolver.resolve(raw.trial, raw.assigned, raw.tune)
        if raw.method:
            faults[before:] = [Fault(f"{raw.place}: {f.key}", f.message) for f in faults[before:]]
        if spec is not None:
            plan.cells.append(Cell(digest([spec.point, dict(raw.tune)]), spec, raw))
    if faults:
        raise ConfigError(sweep.source, faults)
    for cell in plan.cells:
        check_cell(plan.bench, cell.spec, faults)
    check_objective(sweep, plan.bench.dataset(plan.cells[0].spec.dataset).task, faults)
    if faults:
        raise ConfigError(sweep.source, faults)
    _check_twins(plan, faults)
    if faults:
        raise ConfigError(sweep.source, faults)
    if build:
        _build_each_model(plan)
    return plan


def _check_twins(plan: Plan, faults: list[Fault]) -> None:
    """Refuse cells that differ in what is written and not in what is run."""
    seen: dict[str, Cell] = {}
    for cell in plan.cells:
        first = seen.setdefault(cell.id, cell)
        if first is not cell:
            one, other = ({"method": c.raw.method, **c.raw.assigned} for c in (first, cell))
            differ = [k for k in {**one, **other} if one.get(k) != other.get(k)]
            told = " and ".join(str({k: c.get(k) for k in differ}) for c in (one, other))
            faults.append(Fault("search", f"{told} come to the same trial; nothing in it takes what differs"))


def _build_each_model(plan: Plan) -> None:
    """Build every different model once, of each phase, so that what does not fit is told before any work."""
    counts: dict[str, tuple[int, int]] = {}
    faults: list[Fault] = []
    for cell in plan.cells:
        s = cell.spec
        key = digest([repr(part) for part in (s.dataset, s.encoders, s.strategy, s.fusion, _training(s))])
        if key not in counts:
            try:
                counts[key] = _build(plan.bench, s)
            except InputError as error:
                faults.append(Fault(cell.raw.place, str(error)))
                continue
        plan.parameters[cell.id] = counts[key]
    if faults:
        raise ConfigError(plan.sweep.source, faults)


def _training(spec: TrialSpec) -> list[object]:
    return [
        (s.adapters, s.fusion_adapter, s.procedure, s.strategy, s.missing.train.pattern(tuple(s.encoders)))
        for s in spec.stages()
    ]


def _build(bench: Bench, spec: TrialSpec) -> tuple[int, int]:
    """Build all phases' models and procedures; give the most that one trains, and the last one's size."""
    model: MultimodalModel | None = None
    counts = []
    stages = spec.stages()
    for place, stage in enumerate(stages):
        restart = model is None or spec.training.phases[place].restart
        try:
            start = None if restart or model is None else hand_over(model, stages[place - 1], stage)
            model = _build_stage(bench, stage, start, model)
        except InputError as error:
            where = f"training.phases.{place}: " if spec.training.phases else ""
            raise InputError(f"{where}{error}") from error
        counts.append(model.count_parameters())
    return max(trainable for trainable, _ in counts), counts[-1][1]


def _build_stage(
    bench: Bench, stage: TrialSpec, start: State | None, teacher: MultimodalModel | None
) -> MultimodalModel:
    """Build one phase's model, and its procedure (InputError where they do not go together)."""
    model = bench.model(stage, start)
    bench.procedure(stage, model, teacher)
    if model.count_parameters()[0] == 0:
        raise InputError("nothing would train: adapter, strategy and fusion are all fixed")
    return model
