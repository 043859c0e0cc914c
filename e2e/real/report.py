"""What a run showed, as a document and as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from e2e.real.load import Phase

Json = dict[str, Any]
_KEPT = {True: "kept", False: "BROKEN", None: "not tried"}


@dataclass(slots=True)
class Report:
    """Filled as the run goes; times in seconds, sizes in bytes."""

    engine_version: str = ""
    operator_image_bytes: int = 0
    operator_resident_bytes: int = 0
    operator_peak_bytes: int = 0
    cold_start: dict[str, float] = field(default_factory=dict)
    columns: str = ""
    """`kubectl get tokenservices` at the high rate."""
    phases: list[Phase] = field(default_factory=list)
    running: dict[str, dict[str, float]] = field(default_factory=dict)
    """Phase -> pod -> mean of the requests it was running."""

    busy: dict[str, float] = field(default_factory=dict)
    """Phase -> the same per replica, of those that were up at a time."""

    refusal: str = ""
    """Of a change that the engine refuses, as `Stalled` told it."""
    verification: Json = field(default_factory=dict)
    """What `ModelVerified` said of the model as it was signed and of a changed one, and whether that was all right."""
    optimizations: Json = field(default_factory=dict)
    contract: list[Json] = field(default_factory=list)
    """Outcomes of `tokenservice engine check`."""

    @property
    def is_clean(self) -> bool:
        """Every request of every phase is accounted for and none was lost; what was to be seen was seen."""
        lost = any(phase.lost or phase.in_flight for phase in self.phases)
        broken = [outcome for outcome in self.contract if not outcome["kept"]]
        seen = all((*self.verification.values(), *self.optimizations.values()))
        return bool(self.contract) and not lost and not broken and seen

    def document(self) -> Json:
        return {
            "engine": {"name": "vLLM", "version": self.engine_version, "device": "CPU"},
            "operator": {
                "imageBytes": self.operator_image_bytes,
                "residentBytes": self.operator_resident_bytes,
                "peakResidentBytes": self.operator_peak_bytes,
            },
            "coldStartSeconds": {name: round(value, 1) for name, value in self.cold_start.items()},
            "kubectlGetTokenservices": self.columns.splitlines(),
            "refusedChange": self.refusal,
            "verification": self.verification,
            "optimizations": self.optimizations,
            "contract": {outcome["name"]: outcome["kept"] for outcome in self.contract},
            "phases": {phase.name: self._phase(phase) for phase in self.phases},
        }

    def text(self) -> str:
        lines = [f"vLLM {self.engine_version} on CPU", self.columns.rstrip()]
        lines += [f"cold start: {', '.join(f'{name} {value:.1f} s' for name, value in self.cold_start.items())}"]
        megabytes = self.operator_image_bytes / 1e6
        resident = self.operator_resident_bytes / 2**20
        lines += [f"operator: image {megabytes:.1f} MB compressed, {resident:.0f} MiB resident"]
        lines += [f"a change that the engine refuses: {self.refusal}"]
        lines += [f"verification: {self.verification}"]
        lines += [f"seen of the optimizations: {self.optimizations}"]
        lines += [f"contract: {one['name']} {_KEPT[one['kept']]}: {one['seen']}" for one in self.contract]
        heads = f"{'seconds':>8}{'sent':>7}{'answered':>9}{'failed':>7}{'cut':>5}{'running':>8}"
        lines += [f"{'phase':18}{heads}  by replica"]
        for phase in self.phases:
            busy = ", ".join(f"{mean:.1f}" for mean in self.running.get(phase.name, {}).values())
            row = f"{phase.name:18}{phase.seconds:8.0f}{phase.sent:7}{phase.answered:9}{phase.failed:7}{phase.cut:5}"
            row += f"{self.busy.get(phase.name, 0.0):8.2f}"
            lines += [f"{row}  {busy}", *(f"    {error}" for error in phase.errors[:5])]
        return "\n".join(lines)

    def _phase(self, phase: Phase) -> Json:
        first = phase.first_token_seconds
        return {
            "seconds": round(phase.seconds, 1),
            "sent": phase.sent,
            "answered": phase.answered,
            "failed": phase.failed,
            "cut": phase.cut,
            "tokens": phase.tokens,
            "medianFirstTokenSeconds": round(median(first), 3) if first else None,
            "meanRunningPerReplica": round(self.busy.get(phase.name, 0.0), 2),
            "meanRunningByPod": {pod: round(mean, 2) for pod, mean in self.running.get(phase.name, {}).items()},
            "errors": phase.errors,
        }
