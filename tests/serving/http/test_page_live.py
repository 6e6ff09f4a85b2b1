"""What the page shows of live traffic, in a real browser: share, money, a canary and the last decisions."""

from hashlib import sha256

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_site import EASY, HARD, RouterWithCanary, Site, box, site_of
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.slow

PRICES = {"weak": {"prompt": 1, "completion": 2}, "strong": {"prompt": 10, "completion": 30}}
SCORES = {EASY: 0.9, HARD: 0.1}


def test_the_counters_follow_what_is_asked_and_the_bar_shows_share_and_target(browser: Browser) -> None:
    prices = {"weak": {"prompt": 0, "completion": 1}, "strong": {"prompt": 0, "completion": 101}}
    with site_of(browser, tab={"reduced_motion": "reduce"}, prices=prices) as site:
        site.open()
        expect(site.page.locator("#share-shown")).to_have_text("No routed requests yet.")
        for question in (EASY, HARD, EASY, "middling"):
            site.ask(question)
            expect(site.answer().locator(".timing")).to_contain_text("total")
        # 1 of 4 went strong.
        expect(site.page.locator("#share-shown")).to_have_text("25.0% went to the strong model, target 30.0%.")
        expected = {"Routed": "4", "Weak answered": "3", "Strong answered": "1", "Strong avoided": "3"}
        for name, value in expected.items():
            expect(site.shown(name)).to_have_text(value)
        bar, filled, target = (box(site.page.locator(each)) for each in ("#share", "#share .filled", "#share .target"))
        assert filled["width"] == pytest.approx(0.25 * bar["width"], abs=1)
        assert target["x"] + target["width"] / 2 - bar["x"] == pytest.approx(0.3 * bar["width"], abs=1)


def test_a_share_that_is_off_by_more_than_chance_says_why_and_what_to_do(browser: Browser) -> None:
    with site_of(browser) as site:
        site.post(HARD, 12)
        site.post(EASY, 28)
        site.open()
        expect(site.page.locator("#share-shown")).to_have_text("30.0% went to the strong model, target 30.0%.")
        expect(site.page.locator("#differs")).to_be_hidden()
        site.post(HARD, 60)
        expect(site.page.locator("#share-shown")).to_have_text("72.0% went to the strong model, target 30.0%.")
        expect(site.page.locator("#differs")).to_contain_text("this traffic differs from the calibration set")
        expect(site.page.locator("#differs")).to_contain_text("serving.budget_control")
        expect(site.page.locator("#differs")).to_contain_text("jobs/relabel.py")


def test_with_budget_control_the_share_is_left_alone(browser: Browser) -> None:
    with site_of(browser, budget_control={}) as site:
        site.post(HARD, 40)
        site.open()
        expect(site.page.locator("#share-shown")).to_contain_text("100.0% went")
        expect(site.page.locator("#differs")).to_be_hidden()


def test_money_is_what_was_saved_and_what_requests_cost(browser: Browser) -> None:
    with site_of(browser, prices=PRICES) as site:
        site.open()
        expect(site.page.locator("#saved")).to_have_text("What is saved shows from the second routed request on.")
        site.post(EASY, 4)
        site.post(HARD)
        # A weak answer costs 5 + 3 * 2 millionths, a strong one 50 + 3 * 30: four times 129 are saved, of five times 140.
        expect(site.page.locator("#saved")).to_have_text("$0.103 saved per 1,000 routed requests.")
        # Of 129 four times and 0 the standard deviation is 57.7, the mean's error 25.8: 103.2 -+ 1.96 * 25.8.
        expect(site.page.locator("#saved-more")).to_have_text(
            "95% interval: $0.0526 to $0.154. That is 73.7% of what the strong model alone would cost."
        )
        expect(site.shown("Cost per 1,000")).to_have_text("$0.0368")  # (4 * 11 + 140) / 5
        expect(site.shown("Saved in all")).to_have_text("$0.000516")


def test_without_prices_the_page_says_what_to_set(site: Site) -> None:
    expect(site.page.locator("#saved")).to_contain_text("No prices set. Give both models' in serving.prices")
    expect(site.shown("Cost per 1,000")).to_have_count(0)


def test_a_canary_stands_beside_the_router_only_where_there_is_one(browser: Browser) -> None:
    with site_of(browser, router=RouterWithCanary(scores=SCORES), prices=PRICES) as site:
        site.open()
        expect(site.shown("Routed")).to_have_text("0")
        expect(site.page.locator("#arms")).to_be_hidden()
        site.post(HARD)  # from the canary's first request on
        site.post(EASY, 3)
        rows = site.page.locator("#arms tr").filter(has_not_text="p50")
        expect(rows).to_have_text(
            ["maincanary", "Requests31", "Strong0.0%100.0%", "Target30.0%30.0%", "Cost per 1,000$0.0110$0.140", "Failed00"]
        )


def test_the_last_decisions_are_told_with_reason_model_and_cost(browser: Browser) -> None:
    with site_of(browser, router=RouterWithCanary(scores=SCORES), prices=PRICES) as site:
        site.open()
        expect(site.shown("Routed")).to_have_text("0")
        expect(site.page.locator("#last")).to_be_hidden()
        site.post(EASY)
        site.strong.why = "dead"
        site.post(HARD)
        told = site.page.locator("#last-decisions li")
        expect(told).to_have_count(2)
        expect(told.nth(1)).to_contain_text("weak Score 0.900 is above the threshold 0.300: the weak model. $0.0000110")
        expect(told.nth(0)).to_contain_text(
            "weak Score 0.100 is below the threshold 0.300: the strong model. But it is down, so the weak model answered. canary ·"
        )
        site.weak.why = "overloaded"
        site.ask(HARD)
        expect(told.nth(0)).to_contain_text("But it is down, so no model answered. status 503")
        assert EASY not in site.page.locator("#last").inner_text()


def test_a_key_sees_its_own_last_decisions_and_texts_where_they_are_kept(browser: Browser) -> None:
    keys = [{"name": name, "sha256": sha256(f"fw-{name}".encode()).hexdigest()} for name in ("ann", "bob")]
    with site_of(browser, api_keys=keys, decision_log={"keep_text": True}) as site:
        site.post("<b>of ann</b>", key="fw-ann")
        site.post("of bob", key="fw-bob")
        site.open()
        site.page.locator("#key").fill("fw-ann")
        site.page.locator("#key").press("Enter")
        expect(site.page.locator("#last-decisions q")).to_have_text(["<b>of ann</b>"])
        expect(site.shown("Routed")).to_have_text("2")


# Looks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_with_everything_to_show_axe_has_nothing_to_complain_of_and_nothing_scrolls_sideways(
    browser: Browser, scheme: str, width: int
) -> None:
    tab = {"color_scheme": scheme, "reduced_motion": "reduce", "viewport": {"width": width, "height": 740}}
    serving = {"prices": PRICES, "decision_log": {"keep_text": True}}
    with site_of(browser, router=RouterWithCanary(scores=SCORES), tab=tab, **serving) as site:
        site.post(HARD, 30)
        site.post("w" * 300, 10)
        site.open()
        expect(site.page.locator("#differs")).to_be_visible()
        expect(site.page.locator("#arms")).to_be_visible()
        site.page.get_by_label("Strong fraction").fill("0.98")
        site.ask(HARD)
        expect(site.text()).to_have_text("the strong answer")
        results = Axe().run(site.page)
        assert results.violations_count == 0, results.generate_report()
        assert site.page.evaluate("document.documentElement.scrollWidth") <= width
