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
  throw new Problem(await inWords(response));
}

async function inWords(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {} // whoever answered does not speak as OpenAI does
  const seconds = response.headers.get("retry-after");
  const later = seconds ? ` Try again in ${seconds} s.` : "";
  if (response.status === 401) {
    askForKey();
    return "The server asks for an API key.";
  }
  if (response.status === 429) return `Too many requests at once.${later} ${message}`;
  if (response.status === 503) return `The server cannot answer now.${later} ${message}`;
  return message || `The server answered with status ${response.status}.`;
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
