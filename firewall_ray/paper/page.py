"""The tables, figures and claims as one self-contained page: inline CSS and SVG, light and dark, nothing from outside."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from firewall_ray.baselines.differences import differences
from firewall_ray.baselines.run import describe
from firewall_ray.config.run import RunConfig
from firewall_ray.evaluation.html import templates
from firewall_ray.paper.claims import Claim, denied_in_print
from firewall_ray.paper.curves import Drawing
from firewall_ray.paper.published import inconsistencies
from firewall_ray.paper.table import Cell, Table
from firewall_ray.paper.targets import Compared
from firewall_ray.paper.variants import pair_name


def render(
    tables: Sequence[Table],
    figures: Sequence[Drawing],
    curves: Sequence[Drawing],
    vectors: Mapping[str, str],
    claims: Sequence[Claim],
    targets: Sequence[Compared],
    config: RunConfig,
) -> str:
    """The page. figures: the paper's; curves: our own; vectors: their SVG elements by name. Names are escaped."""
    return (
        templates("firewall_ray.paper")
        .get_template("paper.html.j2")
        .render(
            tables=tables,
            figures=figures,
            curves=curves,
            # Markup: not escaped again. Names in the drawing were, by matplotlib's SVG writer.
            vectors={name: Markup(svg) for name, svg in vectors.items()},
            claims=[(claim, claim_cell(claim)) for claim in claims],
            inconsistencies=[*inconsistencies(), *denied_in_print()],
            targets=targets,
            differences={describe(name, config): differences(name, config) for name in config.baselines.names},
            pair=pair_name(config.pair),
            num_samples=config.sampling.num_samples,
            confidence=f"{config.evaluation.confidence:.0%}",
        )
    )


def claim_cell(claim: Claim) -> Cell:
    """The difference with its interval, in percentage points; NaN as nothing."""
    # NaN alone differs from itself.
    value, low, high = (None if number != number else number for number in (claim.value, claim.low, claim.high))
    return Cell(value, low, high, signed=True)
