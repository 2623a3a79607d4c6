// Shows how far the user's last writes have come, until all are durable. No write waits for this; it only looks.
"use strict";

const STEPS = ["queued", "applied", "durable"];
const LAST = ["durable", "rejected", "lost"];
const EVERY_MS = 700;
const LOOKS = 60;

function shown(write) {
  const line = document.createElement("li");
  line.dataset.state = write.state;
  const what = document.createElement("span");
  what.textContent = write.what;
  const steps = document.createElement("ol");
  steps.className = "steps";
  const reached = STEPS.indexOf(write.state);
  for (const [number, name] of (reached < 0 ? [write.state] : STEPS).entries()) {
    const step = document.createElement("li");
    step.textContent = name;
    step.className = reached < 0 ? "bad" : number <= reached ? "done" : "";
    steps.append(step);
  }
  line.append(what, steps);
  return line;
}

async function look(list, left) {
  const answer = await fetch(list.dataset.url);
  const { writes } = await answer.json();
  if (writes.length) list.replaceChildren(...writes.map(shown));
  if (left > 0 && writes.some((write) => !LAST.includes(write.state))) setTimeout(look, EVERY_MS, list, left - 1);
}

for (const list of document.querySelectorAll("#writes")) look(list, LOOKS);
for (const link of document.querySelectorAll("[data-w2p_confirm]"))
  link.addEventListener("click", (event) => confirm(link.dataset.w2p_confirm) || event.preventDefault());
