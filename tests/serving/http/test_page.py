"""The page in a real browser: what a person does, sees and is told. The router and the models do as each test says."""

import re
from hashlib import sha256
from itertools import combinations

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from page_site import EASY, HARD, Site, box, site_of
from playwright.sync_api import Browser, Locator, expect

from serve_app.errors import error_body

pytestmark = pytest.mark.slow


# Asking --------------------------------------------------------------------------------------------------------------


def test_an_answer_streams_in_under_its_decision(site: Site) -> None:
    site.weak.text, site.weak.pauses_after = "one two three", 2
    site.ask(EASY)
    expect(site.text()).to_have_text("one two")
    expect(site.text()).to_have_attribute("aria-busy", "true")
    expect(site.answer().locator(".badge")).to_have_text("weak")
    site.weak.go_on.set()
    expect(site.text()).to_have_text("one two three")
    expect(site.text()).to_have_attribute("aria-busy", "false")
    for name, value in {"Route": "weak", "Score": "0.900", "Threshold": "0.300", "Reason": "score", "Router": "v1"}.items():
        expect(site.shown(name)).to_have_text(value)
    expect(site.decision).to_have_text("Score 0.900 is above the threshold 0.300: the weak model.")
    assert site.console_errors == []


def test_what_is_hard_goes_to_the_strong_model(site: Site) -> None:
    site.ask(HARD)
    expect(site.text()).to_have_text("the strong answer")
    expect(site.decision).to_have_text("Score 0.100 is below the threshold 0.300: the strong model.")


def test_the_button_asks_too_and_shift_enter_does_not(site: Site) -> None:
    field = site.question
    field.fill("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    expect(field).to_have_value("one\ntwo")
    assert site.weak.bodies == []
    site.page.get_by_role("button", name="Ask").click()
    expect(site.text()).to_have_text("the weak answer")
    assert b'"one\\ntwo"' in site.weak.bodies[0]


def test_nothing_is_asked_where_nothing_is_written(site: Site) -> None:
    site.ask("   ")
    expect(site.decision).to_have_text("Ask something: the score will show where it goes.")
    expect(site.page.locator("article")).to_have_count(0)


def test_scores_that_look_the_same_are_shown_with_more_digits(site: Site) -> None:
    site.fakes.router.scores["close"] = 0.30004
    site.ask("close")
    expect(site.decision).to_have_text("Score 0.30004 is above the threshold 0.30000: the weak model.")


def test_stop_ends_the_request_and_keeps_what_came(site: Site) -> None:
    site.weak.text, site.weak.pauses_after = "one two three", 1
    site.ask(EASY)
    expect(site.text()).to_have_text("one")
    site.page.get_by_role("button", name="Stop").click()
    expect(site.answer()).to_contain_text("stopped after")
    expect(site.text()).to_have_text("one")
    expect(site.text()).to_have_attribute("aria-busy", "false")
    expect(site.page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(site.question).to_be_focused()
    expect(site.page.get_by_role("alert").filter(has_text=re.compile("."))).to_have_count(0)
    for _ in range(2_000):  # the server has noticed
        if site.weak.num_open == 0:
            break
        site.page.wait_for_timeout(10)
    assert site.weak.num_open == 0


def test_a_new_question_takes_the_place_of_the_one_that_is_being_answered(site: Site) -> None:
    site.weak.pauses_after = 1
    site.ask(EASY)
    expect(site.text()).to_have_text("the")
    site.ask(HARD)
    expect(site.page.locator("article")).to_have_count(1)
    expect(site.text()).to_have_text("the strong answer")
    expect(site.page.get_by_role("button", name="Stop")).to_be_disabled()


@pytest.mark.parametrize(("motion", "at_once"), [("reduce", True), ("no-preference", False)])
def test_on_a_phone_the_answer_is_scrolled_to_once_and_then_stays_where_it_is(browser: Browser, motion: str, at_once: bool) -> None:
    tab = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "reduced_motion": motion}
    with site_of(browser, tab=tab) as site:
        site.page.add_init_script("window.places = new Set(); addEventListener('scroll', () => places.add(scrollY));")
        site.open()
        site.weak.text, site.weak.pauses_after = "word " * 300, 2
        site.ask(EASY)
        expect(site.text()).to_have_text("word word")
        y = settled(site.answer())
        assert 0 <= y < 50
        assert (site.page.evaluate("places.size") == 1) == at_once
        site.weak.go_on.set()
        expect(site.answer().locator(".timing")).to_contain_text("total")
        assert settled(site.answer()) == y
        expect(site.question).not_to_be_focused()  # its keyboard would lie over the answer


def test_in_a_large_window_nothing_is_scrolled(browser: Browser) -> None:
    with site_of(browser, tab={"viewport": {"width": 1280, "height": 1100}}) as site:
        site.open()
        site.ask(EASY)
        expect(site.text()).to_have_text("the weak answer")
        settled(site.answer())
        assert site.page.evaluate("scrollY") == 0
        expect(site.question).to_be_focused()


# The slider ----------------------------------------------------------------------------------------------------------


def test_the_slider_begins_at_the_servers_fraction_and_moves_threshold_and_route(site: Site) -> None:
    slider = site.page.get_by_label("Strong fraction")
    expect(slider).to_have_value("0.3")
    site.question.fill("middling")
    expect(site.shown("Route")).to_have_text("weak")
    slider.fill("0.6")
    expect(site.shown("Route")).to_have_text("strong")
    expect(site.shown("Threshold")).to_have_text("0.600")
    expect(site.page.locator("#axis")).to_have_attribute("style", re.compile(r"--threshold: 0\.6;"))
    assert site.strong.bodies == []  # nothing but the router was asked
    site.question.press("Enter")
    expect(site.text()).to_have_text("the strong answer")
    assert b'"model":"firewall-0.60"' in site.strong.bodies[0]

    site.page.get_by_role("button", name="back to default").click()
    expect(slider).to_have_value("0.3")
    expect(site.shown("Route")).to_have_text("weak")


def test_an_answer_keeps_its_decision_when_the_slider_moves_on(site: Site) -> None:
    title, decided = site.page.locator("#decision-title"), site.answer().locator(".decided")
    site.ask("middling")
    expect(site.text()).to_have_text("the weak answer")
    expect(title).to_have_text("Decision · of the answer below")
    as_decided = "Score 0.500 is above the threshold 0.300: the weak model."
    expect(decided).to_have_text(as_decided)
    site.page.get_by_label("Strong fraction").fill("0.6")
    expect(site.decision).to_have_text("Score 0.500 is below the threshold 0.600: the strong model.")
    expect(title).to_have_text("Preview · of the text above")
    expect(decided).to_have_text(as_decided)
    expect(site.answer().locator(".badge")).to_have_text("weak")


@pytest.mark.parametrize(("fraction", "route", "threshold"), [("0", "weak", "−∞"), ("1", "strong", "∞")])
def test_at_the_ends_of_the_slider_everything_goes_one_way(site: Site, fraction: str, route: str, threshold: str) -> None:
    site.page.get_by_label("Strong fraction").fill(fraction)
    site.question.fill("middling")
    words = f"Everything goes to the {route} model at this fraction."
    expect(site.decision).to_have_text(words)
    expect(site.shown("Threshold")).to_have_text(threshold)
    site.question.press("Enter")
    expect(site.text()).to_have_text(f"the {route} answer")
    expect(site.decision).to_have_text(words)  # now from the headers


# Both models ---------------------------------------------------------------------------------------------------------


def test_compare_streams_both_models_side_by_side_by_their_own_ids(site: Site) -> None:
    site.weak.pauses_after = site.strong.pauses_after = 2
    site.page.get_by_label("Compare both models").check()
    site.ask(HARD)
    expect(site.text(0)).to_have_text("the weak")
    expect(site.text(1)).to_have_text("the strong")
    site.weak.go_on.set()
    site.strong.go_on.set()
    expect(site.text(0)).to_have_text("the weak answer")
    expect(site.text(1)).to_have_text("the strong answer")
    assert site.page.locator("article h2").all_text_contents() == ["small", "large"]
    assert b'"model":"small"' in site.weak.bodies[0]
    assert b'"model":"large"' in site.strong.bodies[0]
    settled(site.answer())
    left, right = box(site.answer(0)), box(site.answer(1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    expect(site.shown("Route")).to_have_text("strong")  # what the router would have done
    expect(site.answer(1).locator(".badge")).to_have_text("strong · the router's choice")
    expect(site.answer(0).locator(".badge")).to_have_text("weak")


def test_the_routers_choice_in_a_comparison_stays_that_of_the_question_that_was_asked(site: Site) -> None:
    site.page.get_by_label("Compare both models").check()
    site.ask(HARD)
    chosen = site.answer(1).locator(".badge")
    expect(chosen).to_have_text("strong · the router's choice")
    site.question.fill(EASY)
    expect(site.shown("Route")).to_have_text("weak")
    expect(chosen).to_have_text("strong · the router's choice")
    expect(site.answer(1).locator(".decided")).to_have_text("Score 0.100 is below the threshold 0.300: the strong model.")
    expect(site.answer(0).locator(".decided")).to_have_text("")


def test_in_a_comparison_one_dead_model_does_not_hide_the_other(site: Site) -> None:
    site.strong.why = "dead"
    site.page.get_by_label("Compare both models").check()
    site.ask(EASY)
    expect(site.text(0)).to_have_text("the weak answer")
    expect(site.answer(1).get_by_role("alert")).to_have_text(
        "The question to large failed: No answer from large (dead). Try again in 1 s."
    )


# When things break ---------------------------------------------------------------------------------------------------


def test_a_stream_that_breaks_keeps_its_beginning_and_says_so(site: Site) -> None:
    site.weak.breaks_after = 2
    site.ask(EASY)
    expect(site.answer().get_by_role("alert")).to_have_text("The answer broke off: The model failed in the middle of its answer.")
    expect(site.text()).to_have_text("the weak")


def test_a_stream_that_ends_without_its_end_is_not_taken_for_whole(site: Site) -> None:
    site.weak.ends_without_done = True
    site.ask(EASY)
    expect(site.answer().get_by_role("alert")).to_have_text("The answer broke off before its end.")


def test_a_dead_models_stand_in_is_named(site: Site) -> None:
    site.strong.why = "dead"
    site.ask(HARD)
    expect(site.text()).to_have_text("the weak answer")
    expect(site.decision).to_have_text(
        "Score 0.100 is below the threshold 0.300: the strong model. But it is down, so the weak model answered."
    )
    expect(site.answer().locator(".badge")).to_have_text("weak")
    site.page.wait_for_timeout(400)  # no late preview takes its place
    expect(site.decision).to_contain_text("But it is down")


def test_in_shadow_mode_a_stand_in_is_not_taken_for_the_model_that_everything_goes_to(browser: Browser) -> None:
    with site_of(browser, shadow="weak") as site:
        site.open()
        site.weak.why = "dead"
        site.ask(EASY)
        expect(site.decision).to_have_text(
            "The server sends everything to the weak model for now; the router's choice is only recorded. "
            "But it is down, so the strong model answered."
        )


def test_when_no_model_answers_the_page_says_when_to_try_again(site: Site) -> None:
    site.weak.why = site.strong.why = "overloaded"
    site.ask(EASY)
    expect(site.answer().get_by_role("alert")).to_have_text(
        "The question to firewall failed: No answer from small (overloaded) nor large (overloaded). Try again in 1 s."
    )


def test_a_dead_router_is_named_with_the_servers_way_out(site: Site) -> None:
    site.fakes.router.error = RuntimeError("no replica")
    site.ask(HARD)
    expect(site.text()).to_have_text("the weak answer")
    expect(site.decision).to_have_text("The router gave no answer. The server's way out is the weak model.")
    expect(site.shown("Score")).to_have_text("–")


def test_too_many_requests_are_a_plain_sentence(browser: Browser) -> None:
    with site_of(browser, max_in_flight=1) as site:
        site.weak.pauses_after = 1
        site.open()
        expect(site.shown("Threshold")).to_have_text("0.300")
        body = {"model": "small", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with httpx.stream("POST", f"{site.url}v1/chat/completions", json=body) as first:
            chunks = first.iter_raw()  # kept: without it the request ends
            next(chunks)
            site.ask(EASY)
            expect(site.answer().get_by_role("alert")).to_have_text(
                "The question to firewall was refused: The server works on as many requests as it takes (serving.max_in_flight). "
                "Try again in 1 s."
            )
            site.weak.go_on.set()


def test_a_server_that_is_gone_is_a_plain_sentence(site: Site) -> None:
    expect(site.shown("Threshold")).to_have_text("0.300")
    site.page.context.set_offline(True)
    site.ask(EASY)
    expect(site.answer().get_by_role("alert")).to_have_text("The server cannot be reached. Is it still running?")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (error_body(400, "The prompt has 9 tokens, the model takes 8."), "The prompt has 9 tokens, the model takes 8."),
        (b'{"detail": [{"loc": ["body"], "msg": "Input is too long"}]}', "Input is too long"),
        (error_body(400, '{"error": {"message": "The prompt is too long."}}'), "The prompt is too long."),
        (b"<html><h1>400</h1></html>", "the status is 400, without a reason."),
    ],
)
def test_what_a_model_refuses_is_a_sentence_with_its_name(site: Site, refusal: bytes, words: str) -> None:
    site.strong.refusal = refusal
    site.ask(HARD)
    expect(site.answer().get_by_role("alert")).to_have_text(f"The strong model refused the question: {words}")


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (502, {}, "<html>502 Bad Gateway</html>", "failed: there is no answer from the server."),
        (503, {"retry-after": "7"}, "", "failed: the server cannot answer now. Try again in 7 s."),
        (413, {}, "", "was refused: it is too long."),
        (418, {}, "", "was refused: the status is 418, without a reason."),
        (
            429,
            {"retry-after": "40000"},
            '{"error": {"message": "This API key has spent what is allowed a day. Again from midnight."}}',
            "was refused: This API key has spent what is allowed a day. Again from midnight.",
        ),
    ],
)
def test_what_stands_before_the_models_refuses_in_a_sentence_too(
    site: Site, status: int, headers: dict[str, str], body: str, words: str
) -> None:
    site.page.route("**/chat/completions", lambda route: route.fulfill(status=status, headers=headers, body=body))
    site.page.get_by_label("Strong fraction").fill("0.6")
    site.ask(HARD)
    expect(site.answer().get_by_role("alert")).to_have_text(f"The question to firewall-0.60 {words}")


# Keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_only_when_the_server_does_and_stays_in_the_tab(browser: Browser) -> None:
    keys = [{"name": "team", "sha256": sha256(b"fw-right").hexdigest()}]
    with site_of(browser, api_keys=keys) as site:
        site.open()
        field = site.page.locator("#key")
        expect(field).to_be_visible()
        expect(site.page.locator("#key-words")).to_contain_text("This server asks for an API key.")
        site.ask(HARD)
        expect(site.answer().get_by_role("alert")).to_have_text("The server asks for an API key.")

        field.fill("fw-wrong")
        field.press("Enter")
        expect(site.page.locator("#key-words")).to_contain_text("The server does not accept this API key.")
        field.fill("fw-right")
        field.press("Enter")
        expect(field).to_be_hidden()
        expect(site.text()).to_have_text("the strong answer")  # what was asked without a key
        expect(site.shown("Routed")).to_have_text("1")
        assert site.page.evaluate("Object.values(sessionStorage)") == ["fw-right"]
        assert site.page.evaluate("localStorage.length + document.cookie.length") == 0
        assert not any("fw-right" in url for url in site.requests)
        assert "fw-right" not in site.page.content()

        site.page.reload()
        expect(site.shown("Threshold")).to_have_text("0.300")
        expect(field).to_be_hidden()


def test_no_key_is_asked_for_where_none_is_needed(site: Site) -> None:
    site.ask(EASY)
    expect(site.text()).to_have_text("the weak answer")
    expect(site.page.locator("#key")).to_be_hidden()


# Safety --------------------------------------------------------------------------------------------------------------


def test_a_hostile_answer_is_shown_as_text(site: Site) -> None:
    hostile = "<img src=x onerror=window.pwned=1> </script><script>window.pwned=1</script> <b>bold</b> [x](javascript:alert(1))"
    site.weak.text = hostile
    site.ask(EASY)
    expect(site.text()).to_have_text(hostile)
    assert site.text().evaluate("element => element.childElementCount") == 0
    assert site.page.evaluate("window.pwned") is None


def test_examples_are_shown_as_text_and_asked_with_a_click(browser: Browser) -> None:
    hostile = "</script><script>window.pwned=1</script><!-- <img src=x onerror=window.pwned=1>"
    with site_of(browser, examples={"hard": HARD, "<b>hostile</b>": hostile}) as site:
        site.open()
        expect(site.page.get_by_role("button", name=hostile)).to_be_visible()
        assert site.page.evaluate("window.pwned") is None
        site.page.get_by_role("button", name=HARD).click()
        expect(site.question).to_have_value(HARD)
        expect(site.text()).to_have_text("the strong answer")


def test_the_policy_lets_nothing_run_that_the_page_did_not_bring(site: Site) -> None:
    response = site.page.reload()
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    refused = """() => { try { document.body.innerHTML = "<p>x</p>"; } catch (error) { return error.name; } }"""
    assert site.page.evaluate(refused) == "TypeError"
    script = (
        """() => { const s = document.createElement("script"); s.textContent = "window.pwned = 1"; document.body.append(s); }"""
    )
    with pytest.raises(Exception, match="TrustedScript"):
        site.page.evaluate(script)
    assert site.page.evaluate("window.pwned") is None
    site.console_errors.clear()  # the refusals


# Looks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of(browser: Browser, scheme: str) -> None:
    """Names of controls, contrast, roles, landmarks: Deque's rules."""
    with site_of(browser, examples={"easy": EASY}, tab={"color_scheme": scheme, "reduced_motion": "reduce"}) as site:
        site.open()
        site.strong.breaks_after = 1
        site.page.get_by_label("Compare both models").check()
        site.page.get_by_label("Strong fraction").fill("0.6")
        site.ask("middling")
        expect(site.answer(1).get_by_role("alert")).to_contain_text("broke off")
        expect(site.shown("Route")).to_have_text("strong")
        results = Axe().run(site.page)
        assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_window_does_not_scroll_sideways(browser: Browser, width: int) -> None:
    examples = {"long": "w" * 80}
    with site_of(browser, examples=examples, tab={"viewport": {"width": width, "height": 740}}) as site:
        site.open()
        site.weak.text = "x" * 300
        site.strong.why = "dead"
        site.page.get_by_label("Compare both models").check()
        site.ask("y" * 300)
        expect(site.text(0)).to_have_text("x" * 300)
        expect(site.answer(1).get_by_role("alert")).to_contain_text("Try again")
        assert site.page.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_moves_while_an_answer_comes(browser: Browser) -> None:
    with site_of(browser) as site:
        site.page.add_init_script(
            "window.shift = 0; new PerformanceObserver((list) => list.getEntries().forEach((e) => (window.shift += e.value)))"
            ".observe({ type: 'layout-shift', buffered: true });"
        )
        site.open()
        expect(site.shown("Routed")).to_have_text("0")
        for question in (EASY, HARD):
            site.ask(question)
            expect(site.answer().locator(".timing")).to_contain_text("total")
        assert site.page.evaluate("window.shift") < 0.02  # Google's bound for a good page is 0.1


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_axis_names_its_values_where_they_are_and_no_word_lies_on_another(browser: Browser, width: int) -> None:
    with site_of(browser, tab={"viewport": {"width": width, "height": 900}, "reduced_motion": "reduce"}) as site:
        site.open()
        axis = site.page.locator("#axis")
        for score, threshold in [
            (0.02, 0.5),
            (0.98, 0.5),
            (0.5, 0.02),
            (0.5, 0.98),
            (0.02, 0.02),
            (0.5, 0.5),
            (0.97, 0.98),
            (0, 0.01),
        ]:
            site.fakes.router.scores["asked"] = score
            site.page.get_by_label("Strong fraction").fill(str(threshold))
            site.question.fill("")
            site.question.fill("asked")
            expect(site.page.locator("#score-shown")).to_have_text(f"score {score:.3f}")
            expect(site.page.locator("#threshold-shown")).to_have_text(f"threshold {threshold:.3f}")
            whole = box(axis)
            for name, value in {"#score-shown": score, "#threshold-shown": threshold}.items():
                label = box(site.page.locator(name))
                middle = whole["x"] + value * whole["width"]
                leftmost, rightmost = whole["x"], whole["x"] + whole["width"] - label["width"]
                assert label["x"] == pytest.approx(min(max(middle - label["width"] / 2, leftmost), rightmost), abs=1)
            words = axis.locator(".mark span, .track span, .ends > span").all()
            assert len(words) == 5
            assert [pair for pair in combinations(map(box, words), 2) if overlap(*pair)] == []
        track = box(axis.locator(".track"))  # a word there would have a background that the threshold changes
        assert not any(overlap(box(word), track) for word in words)


def settled(element: Locator) -> float:
    """Where it begins, once it has stopped to move."""
    y = None
    while y != (y := box(element)["y"]):
        element.page.wait_for_timeout(200)
    return float(y)


def overlap(a: dict[str, float], b: dict[str, float]) -> bool:
    return all(min(a[at] + a[size], b[at] + b[size]) - max(a[at], b[at]) > 1 for at, size in (("x", "width"), ("y", "height")))
