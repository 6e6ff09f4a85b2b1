// The decision: what the router says, in words and on the axis. `route`: who answers; `chosen`: who was to.

const PROBE = "?"; // /v1/route wants a text; where there is none yet, only the threshold of its answer is shown

let chosenFraction = null; // null: whatever the server takes for the model "firewall"
let latest = 0; // number of the last turn
let previewTimer;

const modelName = () => (chosenFraction === null ? "firewall" : `firewall-${chosenFraction.toFixed(2)}`);
const messages = (text) => [{ role: "user", content: text }];
const number = (text) => (text === null ? null : Number(text.replace("inf", "Infinity")));

/** The number of a new decision. One that is not the latest any more when it comes is out of date. */
function newTurn() {
  clearTimeout(previewTimer);
  return ++latest;
}

function previewSoon(delay_ms) {
  clearTimeout(previewTimer);
  previewTimer = setTimeout(preview, delay_ms);
}

/** What would be decided about the text in the field. Shown as it is typed and as the slider moves. */
async function preview() {
  const turn = newTurn();
  const decision = await previewed($("question").value.trim());
  if (turn === latest) showDecision(decision, "Preview · of the text above");
  return decision;
}

async function previewed(text) {
  try {
    const response = await call("v1/route", { model: modelName(), messages: messages(text || PROBE) });
    const decision = withInfinity(await response.json());
    if (chosenFraction === null && decision.strong_fraction !== null) showFraction(decision.strong_fraction);
    const { router, threshold } = decision;
    return text ? { ...decision, chosen: decision.route } : { threshold, router, reason: "nothing-asked" };
  } catch (error) {
    return { reason: "unknown", problem: error.message };
  }
}

/** JSON has none: at the fractions 0 and 1 the threshold is null. */
function withInfinity(decision) {
  if (decision.score !== null) decision.threshold ??= decision.route === "strong" ? Infinity : -Infinity;
  return decision;
}

function decisionOf(headers) {
  const header = (name) => headers.get(`x-firewall-${name}`);
  const [route, reason, router, fallback] = ["route", "reason", "router", "fallback"].map(header);
  const chosen = fallback ? OTHER[route] : route;
  const [score, threshold] = [number(header("score")), number(header("threshold"))];
  return { route, chosen, reason, router, fallback, score, threshold, truncated: header("truncated") === "true" };
}

const REASONS = {
  "nothing-asked": () => "Ask something: the score will show where it goes.",
  unknown: (d) => `No decision. ${d.problem}`,
  requested: (d) => `The ${d.route} model was asked for by name.`,
  fraction: (d) => `Everything goes to the ${d.chosen} model at this fraction.`,
  sticky: (d) => `This conversation began with the ${d.chosen} model and stays with it.`,
  shadow: (d) => `The server sends everything to the ${d.chosen} model for now; the router's choice is only recorded.`,
  "router-timeout": (d) => `The router took too long. The server's way out is the ${d.chosen} model.`,
  "router-failed": (d) => `The router gave no answer. The server's way out is the ${d.chosen} model.`,
  "no-text": (d) => `There is no text for the router to read. The server's way out is the ${d.chosen} model.`,
  score: (d) => {
    if (d.threshold === Infinity) return "Everything goes to the strong model at this fraction.";
    if (d.threshold === -Infinity) return "Everything goes to the weak model at this fraction.";
    const [score, threshold] = apart(d.score, d.threshold);
    if (d.score === d.threshold) return `Score and threshold are both ${score}: the question's hash says ${d.chosen}.`;
    return `Score ${score} is ${d.score < d.threshold ? "below" : "above"} the threshold ${threshold}: the ${d.chosen} model.`;
  },
};
const OTHER = { weak: "strong", strong: "weak" };
const CAUSES = {
  dead: "is down",
  overloaded: "is overloaded",
  timeout: "took too long",
  failed: "failed",
  crashed: "crashed at this request",
};

/** Why it goes where it goes, and where that was not kept, why not. */
function wordsOf(d) {
  let words = REASONS[d.reason]?.(d) ?? `Reason: ${d.reason}.`;
  if (d.fallback) words += ` But it ${CAUSES[d.fallback] ?? d.fallback}, so ${d.route ? `the ${d.route}` : "no"} model answered.`;
  if (d.truncated) words += " The router read only the beginning of the text.";
  return words;
}

function showDecision(d, title) {
  $("decision-title").textContent = title;
  $("decision").textContent = wordsOf(d);
  const [score, threshold] = apart(d.score, d.threshold);
  const known = d.route !== undefined;
  for (const [id, text] of Object.entries({ score, threshold, route: d.route, reason: known && d.reason, router: d.router })) {
    $(id).textContent = text || "–";
  }
  $("route").className = d.route ? `is-${d.route}` : "";
  mark("threshold", d.threshold, `threshold ${threshold}`);
  mark("score", d.score, `score ${score}`);
}

/** A value on the axis; nothing where there is none. */
function mark(name, value, text) {
  const label = $(`${name}-shown`);
  label.parentElement.classList.toggle("unknown", value == null);
  if (value == null) return;
  label.textContent = text;
  $("axis").style.setProperty(`--${name}`, Math.min(1, Math.max(0, value)));
}

/** Two numbers with as many digits as it takes to tell them apart, three at least. */
function apart(a, b) {
  const shown = (x, digits) => (x == null ? "" : Number.isFinite(x) ? x.toFixed(digits) : x < 0 ? "−∞" : "∞");
  let digits = 3;
  while (digits < 9 && a !== b && shown(a, digits) === shown(b, digits)) digits++;
  return [shown(a, digits), shown(b, digits)];
}

function showFraction(fraction) {
  $("fraction").value = fraction;
  $("fraction-shown").textContent = fraction.toFixed(2);
  $("fraction").setAttribute("aria-valuetext", `${Math.round(fraction * 100)} percent`);
  $("use-default").disabled = chosenFraction === null;
}
