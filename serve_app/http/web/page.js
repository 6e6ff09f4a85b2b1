// What a person does, and what it sets off.
//
// What the server sends reaches the document as text only, never as HTML: a model's answer may be hostile.

$("ask").addEventListener("submit", (event) => (event.preventDefault(), ask()));
$("stop").addEventListener("click", () => asking?.abort());
$("question").addEventListener("input", () => previewSoon(250));
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
$("fraction").addEventListener("input", () => {
  chosenFraction = $("fraction").valueAsNumber;
  showFraction(chosenFraction);
  previewSoon(60);
});
$("use-default").addEventListener("click", () => {
  chosenFraction = null;
  $("fraction").focus();
  preview();
});
$("compare").addEventListener("change", () => $("answers").classList.toggle("two", $("compare").checked));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  if (askAgain) ask();
  preview();
  refreshCounters();
});
for (const [label, question] of Object.entries(JSON.parse($("examples-data").textContent))) {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.append(Object.assign(document.createElement("b"), { textContent: `${label}: ` }), question);
  button.addEventListener("click", () => {
    $("question").value = question;
    ask();
  });
  $("examples").append(button);
}
preview();
refreshCounters();
