// Live counters, from GET /stats.

let counterTimer;

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
  const count = (value) => value.toLocaleString("en");
  const percent = (value) => `${(value * 100).toFixed(1)}%`;
  const ms = (value) => (value === null ? "–" : `${count(Math.round(value * 1_000))} ms`);
  const { strong_fraction: share, target_strong_fraction: target } = stats;
  $("share-shown").textContent =
    share === null ? "No routed requests yet." : `${percent(share)} went to the strong model, target ${percent(target)}.`;
  $("share").classList.toggle("empty", share === null);
  $("share").style.setProperty("--share", share ?? 0);
  $("share").style.setProperty("--target", target ?? 0);
  const rows = {
    Routed: count(stats.routed),
    "Weak answered": count(stats.by_route.weak),
    "Strong answered": count(stats.by_route.strong),
    "Strong avoided": count(stats.strong_calls_avoided),
    "Est. saving": stats.estimated_saving_usd === null ? "no prices set" : `$${stats.estimated_saving_usd.toFixed(4)}`,
    Fallbacks: count(stats.fallbacks),
    "Answer, p50": ms(stats.latency_s.p50),
    "Answer, p90": ms(stats.latency_s.p90),
    "Router, p50": ms(stats.router_s.p50),
    "Router, p90": ms(stats.router_s.p90),
  };
  $("counters").replaceChildren(
    ...Object.entries(rows).map(([name, value]) => {
      const row = document.createElement("div");
      row.append(Object.assign(document.createElement("dt"), { textContent: name }));
      row.append(Object.assign(document.createElement("dd"), { textContent: value }));
      return row;
    }),
  );
  $("counters-note").textContent = `One replica, since ${new Date(stats.since * 1_000).toLocaleTimeString()}.`;
}
