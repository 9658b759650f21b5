// Keeps the page of an order fresh: asks for its timeline and adds the events that are new.
(() => {
  "use strict";
  const page = document.querySelector("[data-timeline]");
  if (!page) return;
  const list = page.querySelector(".timeline");
  const waiting = page.querySelector(".waiting");
  const pill = document.querySelector(".pill");
  const late = "still waiting: the event may be on its way to a retry, or in the dead letters, which the admin shows";
  let newest = Date.now();
  const passed = { placed: ["placed"], paid: ["placed", "paid"], shipped: ["placed", "paid", "shipped"] };
  const isOver = (status) => status === "shipped" || status === "declined";

  function item(event) {
    const li = document.createElement("li");
    const time = document.createElement("time");
    const text = document.createElement("div");
    const key = document.createElement("code");
    time.textContent = event.time;
    text.textContent = event.text;
    key.textContent = event.key;
    text.append(key);
    li.append(time, text);
    li.className = "new";
    return li;
  }

  function show(state) {
    for (const event of state.events.slice(list.children.length)) {
      list.append(item(event));
      newest = Date.now();
    }
    waiting.textContent = Date.now() - newest > 8000 ? late : "waiting for the next event";
    pill.textContent = state.status_text;
    pill.className = "pill " + state.status;
    for (const step of document.querySelectorAll(".steps li")) {
      const name = step.dataset.step;
      step.classList.toggle("done", (passed[state.status] || ["placed"]).includes(name));
      step.classList.toggle("stopped", state.status === "declined" && name === "paid");
    }
    waiting.hidden = isOver(state.status);
  }

  async function look() {
    let pause = 2000;
    try {
      const answer = await fetch(page.dataset.timeline, { cache: "no-store" });
      if (answer.ok) {
        const state = await answer.json();
        show(state);
        pause = isOver(state.status) ? 5000 : 500;
      }
    } catch {
      // The shop is away for a moment; the next look may find it again.
    }
    setTimeout(look, pause);
  }
  look();
})();
