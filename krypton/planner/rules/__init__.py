"""The optimizer's rules in the order in which they run. Order matters; the reason for each place stands beside it."""

from krypton.errors import PlanError, unknown
from krypton.planner.rules.base import Context, Rule
from krypton.planner.rules.chain_depthwise import chain_depthwise
from krypton.planner.rules.choose_batch import choose_batch
from krypton.planner.rules.choose_kernel import choose_kernel
from krypton.planner.rules.choose_precision import choose_precision
from krypton.planner.rules.defer_activation import defer_activation
from krypton.planner.rules.defer_gate import defer_gate
from krypton.planner.rules.drop_identity import drop_identity
from krypton.planner.rules.energy_cut import energy_cut
from krypton.planner.rules.factor_gate import factor_gate
from krypton.planner.rules.fold_batch_norm import fold_batch_norm
from krypton.planner.rules.fold_padding import fold_padding
from krypton.planner.rules.fold_shift import fold_shift
from krypton.planner.rules.freeze_statistics import freeze_statistics
from krypton.planner.rules.full_when_cheaper import full_when_cheaper
from krypton.planner.rules.fuse_activation import fuse_activation
from krypton.planner.rules.incremental import incremental
from krypton.planner.rules.materialise_views import materialise_views
from krypton.planner.rules.pool_first import pool_first
from krypton.planner.rules.position_tiles import position_tiles
from krypton.planner.rules.project_when_opaque import project_when_opaque
from krypton.planner.rules.projective_threshold import projective_threshold
from krypton.planner.rules.share_views import share_views

RULES: list[Rule] = [
    # first, so that no pattern has to look through identities
    Rule("drop_identity", drop_identity, "read through nodes that return their input"),
    Rule("fold_padding", fold_padding, "zero padding becomes part of the convolution that reads it"),
    # before fusion, which would hide the scale in an epilogue
    Rule("fold_batch_norm", fold_batch_norm, "scales and shifts go into the weights of the convolution before them"),
    # before fusion, so that what followed the pool can hang onto the convolution
    Rule("pool_first", pool_first, "average pools go before 1×1 convolutions, which then have fewer pixels"),
    # before modes are set: one fused node has one mode
    Rule("fuse_activation", fuse_activation, "scales, sums and activations run in one pass with their convolution"),
    # needs scales and sums in one node
    Rule("factor_gate", factor_gate, "a map plus the same map times a gate is the map times one gate"),
    # behind it, since it leaves shifts
    Rule("fold_shift", fold_shift, "shifts before a convolution without padding go into its bias"),
    Rule("incremental", incremental, "compute changes on boxes instead of whole maps"),
    # before increments end where gates are opaque
    Rule("freeze_statistics", freeze_statistics, "gates and the moments of group norms keep their values", exact=False),
    # needs the modes; makes plans with opaque operators legal
    Rule("project_when_opaque", project_when_opaque, "end increments only where an operator has no delta rule"),
    # knows which nodes are deltas; before costs are asked for, which it lowers
    Rule("projective_threshold", projective_threshold, "fields are cut to a part tau of the map", exact=False),
    # needs complete increments to compare with
    Rule("full_when_cheaper", full_when_cheaper, "end increments where whole maps cost less"),
    # needs to know where increments end
    Rule("energy_cut", energy_cut, "fields are cut to where a share keep of the squared change is", exact=False),
    # from here on the graph is final, and what surrounds it is chosen
    Rule("materialise_views", materialise_views, "keep just the base values that delta rules read"),
    Rule("share_views", share_views, "compute base values once for all occlusions"),
    Rule("position_tiles", position_tiles, "compute neighbouring occlusions together"),
    Rule("choose_batch", choose_batch, "gather occlusions for what runs on whole values"),
    Rule("choose_kernel", choose_kernel, "run every node with the fastest kernel there is"),
    # chooses among the kernels of the rule before
    Rule("choose_precision", choose_precision, "convolutions in bfloat16 as far as the tolerance allows", exact=False),
    # only some kernels can begin with a function
    Rule("defer_activation", defer_activation, "activations before 1×1 convolutions are computed as those read them"),
    Rule("defer_gate", defer_gate, "gates before 1×1 convolutions are multiplied as those read their input"),
    # only some kernels can be links of a chain
    Rule("chain_depthwise", chain_depthwise, "depthwise convolutions run with their neighbours, a few occlusions at a time"),
]


def register_rule(rule: Rule, *, after: str) -> Rule:
    """Add a rule of one's own behind a named one; one of the same name is replaced."""
    RULES[:] = [r for r in RULES if r.name != rule.name]
    names = [r.name for r in RULES]
    if after not in names:
        raise PlanError(unknown("rule", after, names))
    RULES.insert(names.index(after) + 1, rule)
    return rule


__all__ = ["RULES", "Context", "Rule", "register_rule"]
