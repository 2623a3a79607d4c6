// All ids come from JSON and go back in JSON: as JavaScript's numbers.
"use strict";
const main = document.querySelector("main");
window.steps = 0;
let project = null;

async function ask(path, data) {
  const options = data ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(data) } : {};
  const answer = await fetch("api/" + path, options);
  return answer.ok ? answer.json() : { failed: answer.status };
}

function element(tag, text, ...parts) {
  const made = document.createElement(tag);
  made.append(text, ...parts);
  return made;
}

function button(text, act) {
  const made = element("button", text);
  made.addEventListener("click", () => step(act));
  return made;
}

// Do something, then show what the server says by now.
async function step(act) {
  const said = await act();
  await show(said && said.failed ? "failed: " + said.failed : "");
  window.steps += 1;
}

function post(path, data) {
  return step(() => ask(path, data));
}

async function show(notice) {
  const { projects } = await ask("projects");
  const list = projects.map((one) => element("li", button(one.name, () => { project = one.id; }), " led by " + one.lead));
  const { tickets } = project === null ? { tickets: [] } : await ask("tickets/" + project);
  main.replaceChildren(element("p", notice), element("ul", "", ...list), ...(tickets || []).map(article));
}

function article(ticket) {
  const said = ticket.comments.map(([who, body]) => element("li", who + ": " + body));
  const made = element("article", ticket.title + ", " + ticket.state + ", " + ticket.votes + " votes ",
    button("vote", () => ask("votes", { ticket: ticket.id })),
    button("close", () => ask("close", { ticket: ticket.id })),
    element("ul", "", ...said));
  made.dataset.ticket = ticket.id;
  return made;
}

step(() => null);
