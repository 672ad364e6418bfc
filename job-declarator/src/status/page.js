"use strict";
// Every five seconds the page's newest self, put in place without losing the place or a selection.
setInterval(async () => {
  if (document.hidden || String(getSelection())) return;
  const late = document.getElementById("late");
  try {
    const answer = await fetch("/", { signal: AbortSignal.timeout(4000) });
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
    late.hidden = true;
  } catch {
    late.hidden = false;
  }
}, 5000);
