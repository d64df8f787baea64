"""What a plugin author implements: one abstract class a kind, one abstract method each.

Constructors ask by parameter name for what the engine knows:

- `modality`, `modalities`: the name, or all names in the dataset's order;
- `width`: the common token width of all modalities;
- `task`: what is predicted (`task.out` logits);
- `example`: one raw input of the modality, for sizes;
- `encoders`: for each modality an `EncoderFacts`;
- `fusion_layers`: how many layers of the fusion take prompts;
- `pattern`: the modalities that every training row has and no others, None where rows differ;
- `teacher`: the model that the phase before left, None in the first phase;
- `seed`: the trial's seed.

Every other parameter is the user's option, checked against the signature before any work.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, runtime_checkable
from typing import Protocol as Interface

from jaxtyping import Float
from torch import Tensor, nn

from mmx.errors import InputError
from mmx.protocols import Protocol
from mmx.tasks import Task
from mmx.types import (
    Batch,
    Begun,
    Input,
    Logits,
    Modality,
    Pattern,
    Presence,
    Prompts,
    TokenMap,
    Tokens,
    first_token,
    head_logits,
    restrict,
)

__all__ = [
    "HEADS",
    "Adapter",
    "Batch",
    "Begun",
    "DataCard",
    "Dataset",
    "Encoder",
    "EncoderFacts",
    "Filled",
    "Fusion",
    "Input",
    "Logits",
    "Modality",
    "Model",
    "Output",
    "Pattern",
    "Presence",
    "Procedure",
    "Prompts",
    "Protocol",
    "Sample",
    "Step",
    "Strategy",
    "Task",
    "TokenMap",
    "Tokens",
    "Tracker",
    "TrialLog",
    "TrialRecord",
    "first_token",
    "head_logits",
    "restrict",
]


class Sample(NamedTuple):
    """One example. A modality that it lacks by nature is left out of `inputs`."""

    id: str
    inputs: Mapping[Modality, Tensor]
    target: Any


@dataclass(frozen=True)
class DataCard:
    """What a reader must know of a dataset before trusting a number on it."""

    description: str
    source: str
    licence: str
    citation: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    natural_missing: str = "none"
    modalities: Mapping[str, str] = field(default_factory=dict)
    """Modality name to kind; empty: as the class says."""
    splits: str = ""
    """Which papers use which split."""


class Dataset(ABC):
    """Samples of several modalities with a target.

    `in_memory`: samples are a pure function of their index and small enough to be read once and kept.
    """

    modalities: Mapping[Modality, str]
    """Modality name (letters, digits, `_`) to kind: image, audio, text, video or vector."""
    task: Task
    card: DataCard | None = None
    in_memory: bool = False

    @abstractmethod
    def split(self, name: str) -> Sequence[Sample]:
        """Give the samples of "train", "val" or "test"; inputs of one modality have one shape."""

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Put the data under `root` where that can be done, and say what is there (`mmx data prepare`)."""
        del root
        return "Nothing to prepare: the data comes with the package."


class Encoder(nn.Module, ABC):
    """Raw input of one modality to tokens. It is only ever given rows that have the modality."""

    kind: ClassVar[str]
    """Kind of modality that it reads: image, audio, text, video or vector."""
    lora_targets: ClassVar[str]
    """Regex over module names (full match) that LoRA adapts by default."""
    accepts_prompts: ClassVar[bool] = False
    """Whether `prompts` is taken: extra tokens put in front, whose outputs come back in front."""
    prompt_layers: int = 0
    """How many layers take prompts of their own (`Prompts`); 0: only plain ones at the input."""
    width: int
    """Width of its tokens."""
    depth: int = 0
    """Into how many stages `advance` cuts it; 0: it only runs as a whole."""

    def advance(self, state: Tensor | Tokens, start: int, stop: int) -> Tokens:
        """Run the stages from `start` to before `stop`: raw input at 0, what the one before gave elsewhere.

        All of them are `forward` without prompts. Tokens between two stages are as wide as the author likes.
        So what does not train is encoded once (see `training.frozen_cache_gigabytes`).
        """
        raise InputError(f"encoder {type(self).__name__} cannot be cut into stages")

    def class_embedding(self) -> Float[Tensor, " width"] | None:
        """Give what enters as the class token, its position included; None where there is none."""
        return None

    @abstractmethod
    def forward(self, raw: Tensor, prompts: Any = None) -> Tokens:
        """Encode (batch, …). `prompts`: None, a tensor (batch, prompts, width), or `Prompts`."""


@dataclass(frozen=True)
class EncoderFacts:
    """What a strategy may know of an encoder: its own token width, which prompts it takes, and a copy of its
    class token's embedding, from which tokens of the strategy's own may start.
    """

    width: int
    accepts_prompts: bool
    prompt_layers: int
    class_embedding: Float[Tensor, " width"] | None = None

    @classmethod
    def of(cls, encoder: Encoder) -> "EncoderFacts":
        """Read them off an encoder."""
        embedding = encoder.class_embedding()
        copy = None if embedding is None else embedding.detach().clone()
        return cls(encoder.width, encoder.accepts_prompts, encoder.prompt_layers, copy)


@dataclass(frozen=True)
class Filled:
    """What a strategy hands to the fusion: tokens of every modality, extra losses (already weighted), and
    prompts for a fusion that takes them."""

    tokens: TokenMap
    losses: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    prompts: Prompts | None = None


class Strategy(nn.Module, ABC):
    """What stands in for a modality that is absent. It never sees raw inputs."""

    uses_targets: bool = False
    """Whether training needs the encodings of rows that `hide` has hidden."""
    encodes_by_pattern: bool = False
    """Whether its prompts depend on who is present, so that evaluation must encode once a pattern."""

    def prepare(self, encodings: Iterator[TokenMap]) -> None:
        """Look once at what the encoders make of all training rows, before the first step of a training.

        For what is found by counting instead of gradients: prototypes, say. It is kept in buffers.
        """

    def hide(self, presence: Presence) -> Presence:
        """Hide more, in training only (modality dropout); at least one modality a row must remain."""
        return presence

    def prompts(self, modality: Modality, presence: Presence) -> Prompts | Tensor | None:
        """Give prompts (one set a row) for the modality's encoder, in that encoder's own width."""
        del modality, presence
        return None

    def adapt(self, tokens: TokenMap, presence: Presence) -> TokenMap:
        """Modulate the tokens of what is there."""
        del presence
        return tokens

    @abstractmethod
    def fill(self, tokens: TokenMap, presence: Presence, targets: TokenMap | None) -> Filled:
        """Give every modality that the strategy answers for its tokens.

        In `tokens` every modality has its key; absent rows have no valid token and zero values (where no row
        has the modality, the token axis may be 0). `targets`: in training the tokens before hiding, None in
        evaluation.
        """


HEADS = frozenset({"head", "heads"})
"""Names of the submodules that hold a fusion's prediction head(s)."""


class Fusion(nn.Module, ABC):
    """Tokens of all modalities to logits. Owns its head(s), in submodules named as in HEADS; reads only valid
    tokens."""

    accepts_prompts: ClassVar[bool] = False
    """Whether `forward` takes a second argument `prompts`."""
    prompt_layers: int = 0
    """How many of its layers take prompts."""
    tells_modalities_apart: bool = False
    """Whether `modality_logits` gives anything."""

    @abstractmethod
    def forward(self, tokens: TokenMap) -> Logits:
        """Fuse."""

    def modality_logits(self, tokens: TokenMap) -> Mapping[Modality, Logits]:
        """Give what each modality alone would say; zeros in rows where it has no valid token."""
        raise InputError(f"fusion {type(self).__name__} has no logits of single modalities")

    def shared_head(self) -> nn.Linear | None:
        """Give the one linear head that each modality's summary token passes alone, where there is one."""
        return None


class Adapter(ABC):
    """Which parameters of an encoder, or of a fusion, train, and how."""

    by_pattern: bool = False
    """Whether what it does to a row depends on who is present: `select` is then called before each use."""
    calibration_batches: int = 0
    """Over how many training batches gradients are summed before training, for `calibrate` to look at."""

    @abstractmethod
    def apply(self, module: nn.Module) -> None:
        """Change the module in place and set `requires_grad` of all its parameters."""

    def meet(self, others: Mapping[Modality, "Adapter"]) -> None:  # noqa: B027 optional
        """Take note of the adapters of the other encoders, once all are applied: for what they share."""

    def select(self, presence: Presence) -> None:
        """Take note of who is present in the rows that come next."""
        del presence

    def calibrate(self) -> None:  # noqa: B027 optional
        """Choose what trains by the gradients that lie in `.grad`, before training starts."""

    def fold(self, module: nn.Module) -> None:
        """Write what was trained into plain weights, in place, so that the module is as before `apply` and
        gives the same outputs. Nothing to do where training changed the module's own weights."""
        del module


class Output(NamedTuple):
    """What a model gives for a batch."""

    logits: Logits
    losses: Mapping[str, Float[Tensor, ""]]
    """The strategy's, already weighted."""
    tokens: TokenMap
    """What the fusion was given."""
    presence: Presence
    """Who was there: the batch's presence, in training less what the strategy hid."""


@runtime_checkable
class Model(Interface):
    """What a procedure may do with the model."""

    modalities: tuple[Modality, ...]
    encoders: nn.ModuleDict
    strategy: Strategy
    fusion: Fusion
    adapters: dict[str, Adapter]

    def __call__(self, batch: Batch) -> Output:
        """Run the whole line: hide, encode, adapt, fill, fuse."""
        ...


class Step(NamedTuple):
    """One optimiser step: its loss, and what to do between backward and step."""

    loss: Float[Tensor, ""]
    losses: Mapping[str, Tensor]
    """Parts of the loss by name, for the log."""
    after_backward: Callable[[], None] | None = None


class Procedure(ABC):
    """The losses of a training step, and their order."""

    def check(self, model: Model) -> None:
        """Refuse, with InputError, a model that it cannot train; called before any work."""
        del model

    def epoch_started(self, epoch: int, batches: int) -> None:
        """Take note that an epoch (from 0) of so many batches begins."""
        del epoch, batches

    def state_dict(self) -> dict[str, Tensor]:
        """Give what it has learned so far, for a checkpoint: all that later epochs depend on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it back, in a procedure that was built anew in the same way."""
        del state

    @abstractmethod
    def steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """Yield one optimiser step after another for a batch."""


@dataclass(frozen=True)
class TrialRecord:
    """What a tracker knows of one (point, seed)."""

    run_id: str
    point: str
    seed: int
    state: str
    """done, failed, running, or missing: stopped before its end, to be carried on."""
    reason: str = ""
    cell: str = ""
    attempt: int = 1
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each metric."""
    worker: str = ""
    """The process that runs or ran it (`mmx.worker`)."""
    claim: str = ""
    """Its place in the search store, where workers agree who runs what."""
    title: str = ""
    """Its name for people."""
    masks: str = ""
    """Digest of the masks that it was evaluated with; set when it is done."""


class TrialLog(ABC):
    """Where one trial writes to."""

    run_id: str

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log values at a whole-number step, in one batch; what is not finite is left out."""

    @abstractmethod
    def artifact(self, path: Path) -> None:
        """Keep a file."""

    def data(self, name: str, split: str, digest: str, facts: Mapping[str, Any]) -> None:  # noqa: B027 optional
        """Note which data were used: the dataset, the split, a hash of what it holds, and plain facts."""

    @abstractmethod
    def end(self, state: str, reason: str, tags: Mapping[str, str]) -> None:
        """End as "done", "failed" or "missing" (stopped before its end), with the reason and what else to
        remember."""


class Tracker(ABC):
    """Where the results of a sweep are kept. Its constructor takes the store's address as `store`.

    Every method, and those of its logs, raises StoreError where the store cannot be reached or written. What
    it then lacks is sent later; for that a tracker may offer `clock()`, the time in seconds that it logs
    with, and `hide(text)`, which takes the store's secrets out of a text.
    """

    @abstractmethod
    def open_sweep(self, name: str, tags: Mapping[str, str]) -> str:
        """Find or make the sweep's place, and give the id of its parent run; later calls are about it."""

    @abstractmethod
    def find_sweeps(self) -> list[str]:
        """List the sweeps that the store holds, the latest first."""

    @abstractmethod
    def records(self, name: str) -> list[TrialRecord]:
        """List a sweep's trials, the latest attempt of each (point, seed); none where there is no sweep."""

    @abstractmethod
    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """Give a metric by step."""

    @abstractmethod
    def find(self, run: str) -> tuple[str, TrialRecord]:
        """Find a trial by its id, its title, or how one of them begins; give its sweep and what is known.

        InputError where there is none, or several: then it lists them.
        """

    @abstractmethod
    def fetch(self, run_id: str, name: str, folder: Path) -> Path:
        """Bring a file of a trial, or of a sweep's parent run, into a folder (InputError: it has none)."""

    @abstractmethod
    def open_trial(self, title: str, record: TrialRecord) -> TrialLog:
        """Begin a trial of the open sweep; a `record` with a run id goes on with an opening that was cut
        short."""

    @abstractmethod
    def running(self, name: str) -> list[TrialRecord]:
        """List every attempt of a sweep that has not been ended."""

    @abstractmethod
    def reopen(self, run_id: str) -> TrialLog:
        """Go on writing to a trial, to end one whose worker is gone, say."""

    @abstractmethod
    def retire(self, record: TrialRecord) -> None:
        """Take a trial out of account, because it will be run again from the start."""

    @abstractmethod
    def close_sweep(
        self,
        curves: Mapping[str, Mapping[int, float]],
        artifacts: Sequence[Path],
        group_by: Sequence[str],
        state: str,
    ) -> None:
        """Write the sweep's own figures (by step) and files; `state` is "done" or "failed".

        `group_by` names the parameters that the sweep varies, for a view of its curves.
        """

    def page(self, name: str) -> str:
        """Give the address of a sweep's view below the root of the store's own page; empty: there is none."""
        del name
        return ""

    def hint(self, name: str) -> str:
        """Say how to come to that view by hand, where the page may not open on it; empty: it should."""
        del name
        return ""
