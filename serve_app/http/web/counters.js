// Live counters, from GET /stats.

let counterTimer;

const count = (value) => value.toLocaleString("en");
const percent = (value) => `${(value * 100).toFixed(1)}%`;
const ms = (value) => (value === null ? "–" : `${count(Math.round(value * 1_000))} ms`);
const digits = { minimumSignificantDigits: 3, maximumSignificantDigits: 3 };
const dollars = (value) => (value === null ? "–" : value.toLocaleString("en", { style: "currency", currency: "USD", ...digits }));
const time = (seconds) => new Date(seconds * 1_000).toLocaleTimeString();

async function refreshCounters() {
  clearTimeout(counterTimer);
  counterTimer = setTimeout(refreshCounters, 2_000);
  if (document.hidden || !$("key-form").hidden) return;
  try {
    showCounters(await (await call("stats")).json());
  } catch (error) {
    $("counters-note").textContent = error.message;
  }
}

function showCounters(stats) {
  const { strong_fraction: share, target_strong_fraction: target, money } = stats;
  $("share-shown").textContent =
    share === null ? "No routed requests yet." : `${percent(share)} went to the strong model, target ${percent(target)}.`;
  $("share").classList.toggle("empty", share === null);
  $("share").style.setProperty("--share", share ?? 0);
  $("share").style.setProperty("--target", target ?? 0);
  $("differs").hidden = !stats.traffic_differs;
  showSaved(money);
  const rows = {
    ...(money && { "Cost per 1,000": dollars(money.usd_per_1000_requests), "Saved in all": dollars(stats.estimated_saving_usd) }),
    Routed: count(stats.routed),
    "Weak answered": count(stats.by_route.weak),
    "Strong answered": count(stats.by_route.strong),
    "Strong avoided": count(stats.strong_calls_avoided),
    Fallbacks: count(stats.fallbacks),
    "Answer, p50": ms(stats.latency_s.p50),
    "Answer, p90": ms(stats.latency_s.p90),
    "Router, p50": ms(stats.router_s.p50),
    "Router, p90": ms(stats.router_s.p90),
  };
  $("counters").replaceChildren(
    ...Object.entries(rows).map(([name, value]) => {
      const row = document.createElement("div");
      row.append(element("dt", name), element("dd", value));
      return row;
    }),
  );
  showArms(stats.arms);
  showLast(stats.last_decisions);
  $("counters-note").textContent = `One replica, since ${time(stats.since)}.`;
}

function showSaved(money) {
  const { saved_usd_per_1000_requests: saved, saved_fraction: fraction } = money ?? {};
  let [words, more] = ["No prices set. Give both models' in serving.prices to see costs and savings.", ""];
  if (money) words = "What is saved shows from the second routed request on.";
  if (saved) {
    words = `${dollars(saved.value)} saved per 1,000 routed requests.`;
    more = `95% interval: ${dollars(saved.low)} to ${dollars(saved.high)}.`;
    if (fraction !== null) more += ` That is ${percent(fraction)} of what the strong model alone would cost.`;
  }
  $("saved").textContent = words;
  $("saved-more").textContent = more;
}

function showArms(arms) {
  $("arms").hidden = arms === null;
  if (arms === null) return;
  const rows = {
    Requests: (arm) => count(arm.requests),
    Strong: (arm) => (arm.requests ? percent(arm.strong_fraction) : "–"),
    Target: (arm) => (arm.requests ? percent(arm.target_strong_fraction) : "–"),
    "Cost per 1,000": (arm) => dollars(arm.usd_per_1000_requests),
    p50: (arm) => ms(arm.latency_s.p50),
    Failed: (arm) => count(arm.failed),
  };
  $("arms").tBodies[0].replaceChildren(
    ...Object.entries(rows).map(([name, shown]) => {
      const row = document.createElement("tr");
      const head = Object.assign(element("th", name), { scope: "row" });
      row.append(head, element("td", shown(arms.main)), element("td", shown(arms.canary)));
      return row;
    }),
  );
}

let lastShown;

function showLast(decisions) {
  const told = JSON.stringify(decisions);
  if (told === lastShown) return; // what somebody has selected stays so
  lastShown = told;
  $("last").hidden = !decisions.length;
  $("last-decisions").replaceChildren(...decisions.map(lastDecision));
}

function lastDecision(told) {
  const item = $("last-template").content.cloneNode(true).firstElementChild;
  const part = (name) => item.querySelector(name);
  part("time").textContent = time(told.time);
  showBadge(item, told.answered_by ?? told.route);
  part(".why").textContent = wordsOf({ ...withInfinity(told), chosen: told.route, route: told.answered_by });
  const more = [
    told.status !== 200 && `status ${told.status}`,
    told.arm === "canary" && "canary",
    told.cost_usd !== null && dollars(told.cost_usd),
  ];
  part(".more").textContent = more.filter(Boolean).join(" · ");
  part("q").textContent = told.text ?? "";
  return item;
}

function element(name, text) {
  return Object.assign(document.createElement(name), { textContent: text });
}
