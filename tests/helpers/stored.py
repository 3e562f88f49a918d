"""Trials with stored activations."""

import dataclasses

from thawline.activations import Profile, make_plan
from thawline.search.spec import TrialSpec, build_backbone
from thawline.training import runtime_for


def with_activations(spec: TrialSpec, depths: dict[int, float] | None = None) -> TrialSpec:
    """A trial of ``mobilenet_v3_small`` with stored activations of its freeze depth, or of a range of freeze depths."""
    backbone = build_backbone(spec.config, spec.hyperparameters.backbone, len(spec.classes))
    runtime = runtime_for(spec.config.train)
    measured = Profile(
        precision="fp32",
        channels_last=True,
        groups=tuple(group.name for group in backbone.layer_groups),
        forward=(1e-3,) * 7,
        training=(1e-3,) * 7,
        parameters=(1000,) * 7,
        numbers=(1000,) * 6,
        computed_as=("float32",) * 6,
        largest=(1.0,) * 6,
        input_seconds=1e-6,
        step_seconds=1e-9,
        read_bytes_per_second=1e9,
        write_bytes_per_second=1e9,
        start_seconds=0.1,
    )
    plan = make_plan(
        measured,
        spec.config.train,
        train_rows=32,
        validation_rows=16,
        views=1,
        trials=3,
        depths=depths or {spec.hyperparameters.freeze_depth: 1.0},
        budget=10**9,
        input_numbers=3 * 32 * 32,
    )
    stored = dataclasses.replace(spec.activations, plan=plan, weights=backbone.weights_digest)
    assert stored.fill(backbone, runtime, batch_size=8) == {}
    return dataclasses.replace(spec, activations=stored)
