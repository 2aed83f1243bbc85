// Puts the page together: the load first; tasks, chat and figures as soon as the API is there.

import { askForKey, getJson, keyNeeded, onKeyNeeded } from "./api.js";
import { Chat } from "./chat.js";
import { $ } from "./dom.js";
import { watchEngines } from "./engine.js";
import { follow, onState } from "./start.js";
import { Tasks } from "./task.js";
import { current, inEveryLanguage, setLanguage, t, translate } from "./words.js";

function chooseLanguage() {
  const select = $("language");
  select.value = current();
  select.addEventListener("change", () => setLanguage(select.value));
  inEveryLanguage(() => {
    document.documentElement.lang = current();
    translate();
  });
}

function offerKey() {
  const button = $("change-key");
  const show = () => (button.hidden = !keyNeeded());
  button.addEventListener("click", () => void askForKey());
  onKeyNeeded(show);
  show();
}

// The tabs pattern of the ARIA Authoring Practices: arrows move and choose, Tab goes on into the panel.
function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  const choose = (chosen) => {
    for (const tab of all) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      $(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  };
  for (const [index, tab] of all.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      const next = all[(index + step + all.length) % all.length];
      choose(next);
      next.focus();
    });
  }
}

// A task that takes nothing but a prompt is answered by a model that can hold a conversation; others may know one thing only.
const isConversation = (task) => task.images === 0 && Object.keys(task.inputs.properties).join() === "prompt";

async function begin() {
  chooseLanguage();
  offerKey();
  tabs();
  const tasks = new Tasks($("panel-task"));
  const chat = new Chat($("panel-chat"));
  await follow();
  // These wait in the server until its API is there.
  const listed = (await getJson("v1/tasks")).data;
  tasks.show(listed);
  const talker = listed.find(isConversation)?.model;
  let known = "";
  onState(async (state) => {
    const ready = Object.entries(state.models).filter(([, model]) => model.phase === "ready");
    const names = ready.map(([name]) => name).join("\n");
    if (names === known) return;
    known = names;
    chat.show((await getJson("v1/models")).data, talker);
    watchEngines();
  });
}

void begin().catch((error) => {
  const place = $("start-line");
  place.textContent = `${error.title ?? t("error.500")} ${error.message}`;
  throw error;
});
