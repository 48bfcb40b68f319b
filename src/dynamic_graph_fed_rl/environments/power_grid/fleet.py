"""Which unit is what: types, ramps and emissions, and which units become wind and solar farms.

MATPOWER cases carry costs but neither unit types nor ramp limits. Types follow from size, with values typical of
the type: ramps as in the ranges of NREL's "Western Wind and Solar Integration Study Phase 2" (2013), emissions as
in the US EIA's factors for coal steam, combined cycle and open gas turbines.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from dynamic_graph_fed_rl.environments.power_grid.network import Case

# smallest Pmax [MW] of the type, ramp [share of Pmax per minute], emissions [t CO2 per MWh]
_TYPES = ((400.0, 0.015, 0.95), (150.0, 0.04, 0.40), (0.0, 0.08, 0.60))
# annual mean output over capacity, as in the availability processes of `scenarios.py`
WIND_CAPACITY_FACTOR, SOLAR_CAPACITY_FACTOR = 0.35, 0.22
# mean load over the case's nominal load in the `normal` scenario; sizes the farms
MEAN_LOAD_LEVEL = 0.78


@dataclass(frozen=True)
class Fleet:
    """The units in service, in the order of the case's generator table."""

    row: Int[np.ndarray, " units"]
    bus: Int[np.ndarray, " units"]
    p_min_mw: Float[np.ndarray, " units"]
    p_max_mw: Float[np.ndarray, " units"]
    cost_c2: Float[np.ndarray, " units"]
    cost_c1: Float[np.ndarray, " units"]
    cost_c0: Float[np.ndarray, " units"]
    ramp_mw_per_min: Float[np.ndarray, " units"]
    co2_t_per_mwh: Float[np.ndarray, " units"]
    wind: Bool[np.ndarray, " units"]
    solar: Bool[np.ndarray, " units"]

    @property
    def renewable(self) -> Bool[np.ndarray, " units"]:
        return self.wind | self.solar


def build_fleet(case: Case, renewable_share: float) -> Fleet:
    """The case's units, with enough of the idle ones turned into wind and solar farms to serve the share.

    Farms take the place of every second unit that the case leaves at zero output (if there is none, of the two
    smallest), wind and solar in turn. Their capacity, equal for all, is set so that they can deliver
    `renewable_share` of the energy of a normal day.

    Raises:
        ValueError: a share outside 0 to 0.9, or no units in service.
    """
    if not 0.0 <= renewable_share <= 0.9:
        raise ValueError(f"renewable_share {renewable_share}: must lie between 0 and 0.9")
    row = np.flatnonzero(case.gen_on & case.live[case.gen_bus])
    if not len(row):
        raise ValueError(f"case '{case.name}': no generator in service")
    p_max, p_min = case.gen_p_max_mw[row].copy(), np.maximum(case.gen_p_min_mw[row], 0.0)
    cost = [column[row].copy() for column in (case.cost_c2, case.cost_c1, case.cost_c0)]
    by_size = np.searchsorted(-np.array([size for size, _, _ in _TYPES]), -p_max)
    ramp = p_max * np.array([share for _, share, _ in _TYPES])[by_size]
    co2 = np.array([rate for _, _, rate in _TYPES])[by_size]
    wind, solar = np.zeros(len(row), bool), np.zeros(len(row), bool)
    if renewable_share > 0.0:
        idle = np.flatnonzero(case.gen_p_mw[row] <= 0.0)
        farms = idle[::2] if len(idle) else np.argsort(p_max, kind="stable")[:2]
        wind[farms[::2]], solar[farms[1::2]] = True, True
        factor = wind.sum() * WIND_CAPACITY_FACTOR + solar.sum() * SOLAR_CAPACITY_FACTOR
        p_max[farms] = renewable_share * MEAN_LOAD_LEVEL * case.load_p_mw.sum() / factor
        ramp[farms] = p_max[farms]
        p_min[farms], co2[farms] = 0.0, 0.0
        for column in cost:
            column[farms] = 0.0
    return Fleet(row, case.gen_bus[row], p_min, p_max, cost[0], cost[1], cost[2], ramp, co2, wind, solar)
