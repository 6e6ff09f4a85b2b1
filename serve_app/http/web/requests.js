"use strict";
// Requests to the server that this page came from, and their failures in words.

const KEY = "firewall-key"; // in sessionStorage: gone with the tab
const $ = (id) => document.getElementById(id);

/** A failure in words for the person before the page. */
class Problem extends Error {}

async function call(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    throw signal?.aborted ? error : new Problem("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  throw new Problem(await inWords(response, body?.model));
}

const NO_WORDS = { // what a status says where nobody says more: whatever stands before the server
  413: "it is too long.",
  429: "there are too many requests at once.",
  502: "there is no answer from the server.",
  503: "the server cannot answer now.",
  504: "there is no answer in time.",
};

/** Why there is no answer, as a sentence that names the model that refused, else the one that was asked for, if one was. */
async function inWords(response, asked) {
  const { status, headers } = response;
  if (status === 401) {
    askForKey();
    return "The server asks for an API key.";
  }
  let said = "";
  try {
    said = wordsIn(await response.json());
  } catch {} // whoever answered does not speak as OpenAI does
  const route = headers.get("x-firewall-route");
  const what = asked ? `The question to ${asked}` : "The request";
  const failed = route ? `The ${route} model refused the question` : `${what} ${status < 500 ? "was refused" : "failed"}`;
  const seconds = Number(headers.get("retry-after"));
  const later = seconds > 0 && seconds <= 600 ? ` Try again in ${seconds} s.` : ""; // nobody waits for the end of a day
  if (later) said = said.replace(/ ?Try again\.$/, "");
  return `${failed}: ${said || NO_WORDS[status] || `the status is ${status}, without a reason.`}${later}`;
}

/** What a server says of a failure, however it is packed: as OpenAI does, as FastAPI does, as JSON within a text, or plainly. */
function wordsIn(said) {
  if (Array.isArray(said)) return wordsIn(said[0]);
  if (said && typeof said === "object") return wordsIn(said.error ?? said.message ?? said.detail ?? said.msg);
  if (typeof said !== "string") return "";
  try {
    if (/^\s*[[{]/.test(said)) return wordsIn(JSON.parse(said));
  } catch {} // a text that only begins so
  return said.trim();
}

/** The data of a stream of server-sent events, line by line. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

function askForKey() {
  $("key-words").textContent = sessionStorage.getItem(KEY)
    ? "The server does not accept this API key. Is it complete, and still valid?"
    : "This server asks for an API key. Whoever runs it can give you one.";
  $("key-form").hidden = false;
}
