"""Units and the farms among them."""

from dataclasses import replace

import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.power_grid.fleet import (
    MEAN_LOAD_LEVEL,
    SOLAR_CAPACITY_FACTOR,
    WIND_CAPACITY_FACTOR,
    build_fleet,
)
from dynamic_graph_fed_rl.environments.power_grid.network import SHIPPED_CASES, load_case


@pytest.mark.parametrize("name", SHIPPED_CASES)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_farms_can_deliver_their_share_and_the_rest_is_the_case(name, share):
    case = load_case(name)
    fleet = build_fleet(case, share)
    energy = (
        fleet.p_max_mw[fleet.wind].sum() * WIND_CAPACITY_FACTOR
        + fleet.p_max_mw[fleet.solar].sum() * SOLAR_CAPACITY_FACTOR
    )
    assert energy == pytest.approx(share * MEAN_LOAD_LEVEL * case.load_p_mw.sum())
    assert not (fleet.wind & fleet.solar).any()
    farms = fleet.renewable
    assert farms.any() == (share > 0)
    for column in (fleet.p_min_mw, fleet.cost_c2, fleet.cost_c1, fleet.cost_c0, fleet.co2_t_per_mwh):
        assert (column[farms] == 0).all()
    # farms follow the weather within a minute
    assert (fleet.ramp_mw_per_min[farms] >= fleet.p_max_mw[farms]).all()
    rest = fleet.row[~farms]
    np.testing.assert_array_equal(fleet.p_max_mw[~farms], case.gen_p_max_mw[rest])
    np.testing.assert_array_equal(fleet.cost_c2[~farms], case.cost_c2[rest])
    np.testing.assert_array_equal(fleet.cost_c1[~farms], case.cost_c1[rest])
    np.testing.assert_array_equal(fleet.bus, case.gen_bus[fleet.row])
    assert (fleet.p_min_mw >= 0).all() and (fleet.ramp_mw_per_min > 0).all()


def test_the_ieee118_fleet_has_its_54_units_and_capacity_to_spare():
    case = load_case("ieee118")
    fleet = build_fleet(case, 0.2)
    assert len(fleet.row) == 54
    assert fleet.wind.any() and fleet.solar.any()
    assert fleet.p_max_mw[~fleet.renewable].sum() > 1.08 * case.load_p_mw.sum()


def test_units_out_of_service_or_cut_off_are_left_out():
    case = load_case("ieee14")
    off = replace(case, gen_on=np.array([True, True, False, True, True]))
    assert build_fleet(off, 0.0).row.tolist() == [0, 1, 3, 4]
    # bus 8 hangs on one branch
    radial = (case.bus_number[case.branch_from] == 8) | (case.bus_number[case.branch_to] == 8)
    cut = replace(case, branch_on=case.branch_on & ~radial)
    assert 8 not in case.bus_number[build_fleet(cut, 0.0).bus]


def test_the_case_is_left_as_it_was():
    case = load_case("ieee14")
    before = case.gen_p_max_mw.copy()
    build_fleet(case, 0.5)
    np.testing.assert_array_equal(case.gen_p_max_mw, before)


def test_bigger_units_ramp_more_slowly_for_their_size():
    fleet = build_fleet(load_case("ieee118"), 0.0)
    share = fleet.ramp_mw_per_min / fleet.p_max_mw
    order = np.argsort(fleet.p_max_mw)
    assert (np.diff(share[order]) <= 1e-12).all() and len(np.unique(np.round(share, 6))) > 1


@pytest.mark.parametrize("share", [-0.1, 0.91, float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match="renewable_share"):
        build_fleet(load_case("ieee14"), share)


def test_a_case_without_units_is_refused():
    case = load_case("ieee14")
    with pytest.raises(ValueError, match="ieee14.*no generator"):
        build_fleet(replace(case, gen_on=np.zeros(case.generators, bool)), 0.2)
