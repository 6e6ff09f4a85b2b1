// Answers: one of the routed model, or both models' side by side.

let asking = null; // an AbortController while answers stream in
let askAgain = false; // once there is a key

function addAnswer(title) {
  const article = $("answer-template").content.cloneNode(true).firstElementChild;
  article.querySelector("h2").textContent = title;
  $("answers").append(article);
  if (!article.previousElementSibling) bringIntoView(article);
  return article;
}

/** Once, when it is asked for: what streams in later moves nothing. A small window shows as much of the answer as it can. */
function bringIntoView(article) {
  const matches = (query) => matchMedia(query).matches;
  if (matches("(pointer: coarse)")) $("question").blur(); // else the keyboard would lie over the answer
  article.scrollIntoView({
    block: matches("(min-width: 40rem)") ? "nearest" : "start",
    behavior: matches("(prefers-reduced-motion: reduce)") ? "instant" : "smooth",
  });
}

/** Which model an answer is from. */
function showBadge(article, route, more = "") {
  Object.assign(article.querySelector(".badge"), { className: `badge is-${route}`, textContent: route + more });
}

/** Asks `model` and lets the answer stream into the article; whatever goes wrong is said there. */
async function answer(article, model, question, signal, onHeaders) {
  const [text, problem, timing] = [".text", ".problem", ".timing"].map((each) => article.querySelector(each));
  const began = performance.now();
  const since = () => `${Math.round(performance.now() - began).toLocaleString("en")} ms`;
  text.setAttribute("aria-busy", "true");
  try {
    const body = { model, messages: messages(question), stream: true };
    const response = await call("v1/chat/completions", body, signal);
    onHeaders(response.headers);
    await append(text, events(response), () => (timing.textContent = `first token ${since()}`));
    timing.textContent += ` · total ${since()}`;
  } catch (error) {
    if (signal.aborted) timing.textContent = `stopped after ${since()}`;
    else problem.textContent = error instanceof Problem ? error.message : "The answer broke off: the connection was lost.";
  } finally {
    text.setAttribute("aria-busy", "false");
  }
}

async function append(text, stream, onFirst) {
  let first = true;
  for await (const data of stream) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Problem(`The answer broke off: ${event.error.message}`);
    const token = event.choices?.[0]?.delta?.content;
    if (!token) continue;
    if (first) onFirst();
    first = false;
    text.append(token);
  }
  throw new Problem("The answer broke off before its end.");
}

async function ask() {
  const question = $("question").value.trim();
  if (!question) return $("question").focus();
  asking?.abort();
  const { signal } = (asking = new AbortController());
  $("stop").disabled = false;
  $("answers").replaceChildren();
  await ($("compare").checked ? compare(question, signal) : routed(question, signal));
  if (asking?.signal !== signal) return; // asked anew meanwhile
  asking = null;
  askAgain = !$("key-form").hidden;
  if (document.activeElement === $("stop")) $("question").focus({ preventScroll: true }); // a disabled button would lose it
  $("stop").disabled = true;
  refreshCounters();
}

async function routed(question, signal) {
  const turn = newTurn();
  const article = addAnswer("Answer");
  await answer(article, modelName(), question, signal, (headers) => {
    const decision = decisionOf(headers);
    showBadge(article, decision.route);
    article.querySelector(".decided").textContent = wordsOf(decision);
    if (turn === latest) showDecision(decision, "Decision · of the answer below");
  });
}

/** Both models side by side, each by its own id; the one that the router would have chosen is marked. */
async function compare(question, signal) {
  const previewing = preview(); // of this question at this fraction, whatever is in the field when the answers come
  let ids;
  try {
    ids = (await (await call("v1/models", null, signal)).json()).data.map((model) => model.id).filter((id) => id !== "firewall");
  } catch (error) {
    if (!signal.aborted) addAnswer("Answers").querySelector(".problem").textContent = error.message;
    return;
  }
  await Promise.all(
    ids.map((id) => {
      const article = addAnswer(id);
      return answer(article, id, question, signal, (headers) => {
        const route = headers.get("x-firewall-route");
        showBadge(article, route);
        previewing.then((decision) => {
          if (decision.route !== route) return;
          showBadge(article, route, " · the router's choice");
          article.querySelector(".decided").textContent = wordsOf(decision);
        });
      });
    }),
  );
}
