"""What `saccade score` is told: settings that shape the numbers, and how the run goes about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.arguments import UsageError, check_process
from surprise import Settings, SettingsError

if TYPE_CHECKING:
    from experiments.mesh import Driver
    from vlm import VLM

DRIVERS = ("auto", "single", "pmapped", "sharded")


@dataclass(frozen=True)
class Options:
    """The configuration in two parts: what shapes the numbers, and what only runs them."""

    settings: Settings
    dtype: str
    hf_compat: str | None
    attention: str
    batch: int
    driver: str
    mesh: tuple[int, ...]
    coordinator: str
    processes: int
    process: int
    timeout: float
    roots: tuple[str, ...]
    pictures: bool
    report: bool

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Options:
        own = {name: config[name] for name in cls.__annotations__ if name != "settings"}
        for name in ("timeout", "batch"):
            if own[name] <= 0:
                raise UsageError(f"--config.{name} is {own[name]}; it must be positive")
        if own["driver"] not in DRIVERS:
            raise UsageError(f"--config.driver is {own['driver']}; choose from {DRIVERS}")
        check_process(own["process"], own["processes"])
        try:
            own["mesh"] = tuple(int(size) for size in own["mesh"])
        except ValueError:
            raise UsageError(f"--config.mesh is {own['mesh']}; write it as 1,1,4") from None
        own |= {"hf_compat": own["hf_compat"] or None, "roots": tuple(own["roots"])}
        try:
            settings = Settings.from_dict({k: v for k, v in config.items() if k not in own})
        except SettingsError as error:
            raise UsageError(f"--config: {error}") from None
        return cls(settings=settings, **own)

    def shaped_by(self) -> tuple[str, ...]:
        """Names of the configuration's keys that shape the numbers."""
        return ("model", "dtype", "hf_compat", *self.settings.to_dict())

    def join(self) -> tuple[int, int]:
        """This process's number and how many there are, after joining the others.

        A process that is killed may be started again while the others go on.
        """
        if not self.coordinator:
            return self.process, self.processes
        import jax

        from experiments import hosts

        hosts.join(self.coordinator, self.process, self.processes, recoverable=True)
        return jax.process_index(), jax.process_count()

    def load(self, model: str, *, chains: int) -> tuple[VLM, Driver]:
        """The model and its driver: one device, a replica on each, or spread over a mesh.

        No more replicas than `chains`, the steps that can be done side by side.
        """
        import jax

        import vlm
        from experiments import mesh

        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        devices = jax.local_devices()[:chains]
        driver = self.driver
        if driver == "auto":
            driver = "pmapped" if len(devices) > 1 else "single"
        try:
            spread = mesh.make_mesh(self.mesh) if driver == "sharded" else None
            found = vlm.load(
                model,
                dtype=dtype,
                attention=self.attention,
                hf_compat=self.hf_compat,
                place=None if spread is None else mesh.placement(spread),
            )
        except ValueError as error:
            raise UsageError(f"--model: {error}") from None
        if spread is not None:
            return found, mesh.sharded(found.model, spread)
        if driver == "pmapped":
            return found, mesh.pmapped(found.model, devices)
        return found, mesh.single(found.model)
