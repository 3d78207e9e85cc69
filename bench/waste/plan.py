"""What `pagedbench waste` is to simulate: streams, policies and the size of the pool, as typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.waste.changes import Variation, variations_on
from bench.waste.clocks import Clock, at_part
from bench.waste.gpus import read_bytes
from bench.waste.models import Model
from bench.waste.parallel import Job
from bench.waste.policies import DEFAULT_POLICIES, Policy, expand_policies, format_policy
from bench.waste.record import Rank
from bench.waste.simulate import WARMUP_SHARE, takes_tiers, without_tiers
from bench.waste.tables import tables_of
from bench.workloads.record import ServedStream, served_stream
from bench.workloads.source import StreamSource, head, saturated
from bench.workloads.spec import parse_source
from bench.workloads.trace_columns import ROLES
from paged.latency import Slo
from paged.layout import Layout, takes_groups
from paged.policy import PagedPolicy
from paged.tiers import Tier
from reference.errors import BadInput

DEFAULT_RUNS: Final = 60
"""Most simulations of --whatif for a stream where nobody says."""

MIXED: Final = 1000
"""Seeds between one drawing and the next: the parts of a mix count theirs from the first on."""

DEFAULT_DRAWINGS: Final = 5
"""Drawings of a stream that --whatif serves where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WastePlan:
    """What the options come to."""

    streams: Sequence[tuple[StreamSource, ServedStream]]
    """The requests, and how the record describes them."""
    policies: tuple[str, ...]
    """As typed; none: the default ones."""
    block_sizes: tuple[int, ...]
    """For paged policies that do not say."""
    slots: int
    bytes_per_token: int
    """Size of the pool, and of a slot."""
    max_model_len: int | None
    """For reservations that do not say; None: what holds the stream's longest request."""
    warmup: int | None
    clients: int | None
    clock: Clock
    """Duration of a step."""
    slo: Slo | None
    """As for `bench.waste.simulate.simulate`."""
    rank: Rank
    """What changes are ranked by."""
    workers: int | None
    ray: bool
    ray_address: str | None
    """As for `bench.waste.parallel.run_jobs`."""
    whatif: bool
    """Whether one paged policy is varied."""
    drawn: Sequence[Sequence[StreamSource]] = ()
    """More drawings of each stream, where it is drawn."""
    runs: int = DEFAULT_RUNS
    """Most simulations that --whatif takes for a stream."""
    model: Model | None = None
    """Whose cache it is; None: only the bytes of a slot are known. Where its layers differ, paged
    policies are served as if they were alike and with tables for each group, variations with them.
    """
    tiers: tuple[Tier, ...] = ()
    """Behind the pool: policies are served without them and with them, variations with them."""

    def check(self) -> None:
        """Raise BadInput for what is no policy, or cannot be varied, or asked of these streams."""
        arrives = self.clients is not None or all(stream.timed for _, stream in self.streams)
        if self.slo is not None and not arrives:
            limits = [name for name in ("ttft", "e2e") if getattr(self.slo, f"{name}_ns")]
            if limits:
                raise BadInput(
                    f"--slo {limits[0]} on a backlog, where nobody arrives: give a rate, as in "
                    f"--stream sharegpt-fit:rate=2, a trace with times, or --clients"
                )
        if self.rank == "goodput" and self.slo is None:
            raise BadInput("--rank goodput without --slo: say what is good, as in --slo tpot=0.05")

    def check_policies(self) -> None:
        """Raise BadInput for what is no policy, or cannot be varied."""
        if self.base is None:
            expand_policies(self.policies, block_sizes=self.block_sizes, max_model_len=1)
        policies = [self.base] if self.base is not None else self._read(1)
        if self.tiers and (wrong := [each for each in policies if not takes_tiers(each)]):
            raise BadInput(
                f"--tier with {format_policy(wrong[0])}: a tier keeps the blocks of a prefix "
                f"cache, or of preempted requests; give --policy paged:prefix=lru, or "
                f"preempt=swap, without samples, window and quota"
            )

    def jobs(self) -> list[Job]:
        """Every policy on every stream and drawing of it, in the order of the record's rows; of
        --whatif every single change.
        """
        jobs = []
        for at, (_, stream) in enumerate(self.streams):
            for policy in self._policies_for(stream):
                whole = self.job(at, policy)
                if self.tiers and not self.whatif:
                    jobs.append(replace(whole, policy=without_tiers(policy), tiers=()))
                if whole.layout is not None and not self.whatif:
                    jobs.append(replace(whole, slots=self.slots, layout=None))
                jobs.append(whole)
                if not self.whatif:
                    drawn = self.drawn[at] if self.drawn else ()
                    jobs += [
                        replace(whole, source=source, drawing=number)
                        for number, source in enumerate(drawn, start=1)
                    ]
        return jobs

    def job(self, at: int, policy: Policy) -> Job:
        """A policy on the stream of that place."""
        source, stream = self.streams[at]
        layout = self.layout_for(policy)
        return Job(
            stream=stream.label,
            source=source,
            requests=stream.requests,
            policy=policy,
            slots=self.slots if layout is None else self.slots * self.bytes_per_token,
            layout=layout,
            warmup=int(WARMUP_SHARE * stream.requests) if self.warmup is None else self.warmup,
            time=self.clock.time,
            clients=self.clients,
            slo=self.slo,
            tiers=self.tiers,
        )

    def layout_for(self, policy: Policy) -> Layout | None:
        """The tables of the model's groups of layers; None: all layers are alike, or a policy is
        served as if they were.
        """
        # What is varied and its variations are served alike.
        asked = [policy] if self.base is None else [policy, self.base]
        if self.model is None or not all(
            isinstance(each, PagedPolicy) and takes_groups(each) for each in asked
        ):
            return None
        assert isinstance(policy, PagedPolicy)
        return tables_of(self.model, block_size=policy.block_size).layout()

    def variations(self, stream: ServedStream) -> list[Variation]:
        """The single changes that are tried on a stream."""
        assert self.base is not None
        found = variations_on(stream, self.base, slots=self.slots)
        if not self.clock.time.swap_ns_per_token:
            # It would cost nothing, and be recommended for that.
            found = [each for each in found if each.changes.get("preemption") != "swap"]
        if self.layout_for(self.base) is not None:
            # What is served as if all layers were alike cannot be held against it.
            found = [each for each in found if takes_groups(each.policy)]
        return [each for each in found if not self.tiers or takes_tiers(each.policy)]

    @property
    def base(self) -> PagedPolicy | None:
        """The policy that is varied; None where none is."""
        if not self.whatif:
            return None
        read = expand_policies(
            self.policies or ("paged",), block_sizes=self.block_sizes, max_model_len=1
        )
        if len(read) != 1 or not isinstance(read[0], PagedPolicy):
            given = " ".join(self.policies) or f"block sizes {self.block_sizes}"
            raise BadInput(f"--whatif with {given}: give one paged policy, which is then varied")
        return read[0]

    @property
    def first_paged(self) -> PagedPolicy:
        """The first paged policy that is asked for: the one whose server a clock is fitted to."""
        read = expand_policies(
            self.policies or ("paged",), block_sizes=self.block_sizes, max_model_len=1
        )
        paged = (policy for policy in read if isinstance(policy, PagedPolicy))
        return next(paged, PagedPolicy())

    def _policies_for(self, stream: ServedStream) -> tuple[Policy, ...]:
        """Read the policies, with reservations that provide for the longest request."""
        if (base := self.base) is not None:
            return (base, *(each.policy for each in self.variations(stream)))
        longest = 1 << (stream.longest_request - 1).bit_length()
        # Reservations are not for closed loops.
        return self._read(self.max_model_len or longest)

    def _read(self, max_model_len: int) -> tuple[Policy, ...]:
        default = DEFAULT_POLICIES if self.clients is None else ("paged",)
        return expand_policies(
            self.policies or default,
            block_sizes=self.block_sizes,
            max_model_len=max_model_len,
        )


def read_streams(
    specs: Sequence[str],
    traces: Sequence[Path],
    *,
    requests: int | None,
    seed: int,
    columns: tuple[tuple[str, str], ...] = (),
    closed: bool = False,
) -> list[tuple[StreamSource, ServedStream]]:
    """Open the streams that --stream and --trace name, and read each once.

    In a `closed` loop it is the clients that say when requests arrive: times are left out.
    """
    asked = [("--stream", spec) for spec in specs] + [("--trace", f"trace:{t}") for t in traces]
    sources: list[StreamSource] = []
    for option, spec in asked:
        try:
            source = parse_source(spec, requests=requests, seed=seed, columns=columns)
            if closed:
                source = saturated(source)
        except ValueError as error:
            raise _refused(option, spec, error) from None
        sources.append(source if requests is None else head(source, requests))
    names = [
        source.name if option == "--trace" else spec
        for (option, spec), source in zip(asked, sources, strict=True)
    ]
    described = []
    for at, ((option, spec), source) in enumerate(zip(asked, sources, strict=True)):
        # Names that come more than once are numbered.
        nth = f" ({names[: at + 1].count(names[at])})" if names.count(names[at]) > 1 else ""
        try:
            described.append((source, served_stream(source, label=names[at] + nth)))
        except (OSError, ValueError) as error:
            raise _refused(option, spec, error) from None
    return described


def draw_again(
    specs: Sequence[str],
    *,
    traces: int,
    requests: int | None,
    seed: int,
    seeds: int | None,
    whatif: bool,
    closed: bool = False,
) -> list[list[StreamSource]]:
    """Open streams with other seeds, as many as --seeds says with the first; what is the same with
    any seed, and the traces behind them, is not drawn. Raises BadInput: nothing is.
    """
    drawings = seeds or (DEFAULT_DRAWINGS if whatif else 1)
    found: list[list[StreamSource]] = []
    for spec in specs:
        made = [
            parse_source(spec, requests=requests, seed=seed + MIXED * number)
            for number in range(drawings)
        ]
        more = [source for source in made[1:] if source != made[0]]
        if closed:
            more = [saturated(source) for source in more]
        found.append([source if requests is None else head(source, requests) for source in more])
    if seeds is not None and seeds > 1 and not any(found):
        raise BadInput(f"--seeds {seeds}: no stream is drawn; leave it out")
    return found + [[] for _ in range(traces)]


def read_columns(text: str | None) -> tuple[tuple[str, str], ...]:
    """Read --columns, as prompt=NAME,output=NAME,time=NAME."""
    found: dict[str, str] = {}
    if text is None:
        return ()
    for part in text.split(","):
        role, _, column = (word.strip() for word in part.partition("="))
        if role not in ROLES or not column or role in found:
            raise BadInput(
                f"{at_part('--columns', text, part)}give {', '.join(ROLES)} once each, as in "
                f"prompt=in_tokens,output=out_tokens,time=arrived"
            )
        found[role] = column
    if len({"prompt", "output"} & set(found)) == 1:
        raise BadInput(
            f"--columns {text}: name the columns of both prompt and output, or of neither"
        )
    return tuple(found.items())


def _refused(option: str, spec: str, error: Exception) -> BadInput:
    said = str(error)
    if isinstance(error, OSError):
        said = f"{error.strerror or error}; name a file that can be read"
    return BadInput(f"{option} {spec.removeprefix('trace:')}: {said}")


def pool_slots(pool: str, bytes_per_token: int) -> int:
    """Whole slots in a pool of the size that --pool gives."""
    size = read_bytes("--pool", pool)
    if size < bytes_per_token:
        raise BadInput(
            f"--pool {pool}: less than one token, which takes {bytes_per_token:,} bytes; give more"
        )
    return size // bytes_per_token
