// Photos from a drop, the clipboard or a file dialog, with a preview; sent as data URLs.

import { call } from "./api.js";
import { el, freshId, say, text } from "./dom.js";
import { bytes, t } from "./words.js";

const KINDS = ["image/jpeg", "image/png", "image/webp", "image/gif"];

export class Photo {
  constructor({ name, size, type }, url) {
    Object.assign(this, { name, size, type, url });
  }
}

export class Photos {
  #photos = [];
  #label;

  // A field like those of form.js, for at most `most` photos.
  // `sample`: where the server has one of its own, for when none is given; "" where it has none.
  constructor({ name, most, label = "", help = "", sample = "", onchange = () => {} }) {
    const id = freshId("photos");
    this.name = name;
    this.most = most;
    this.onchange = onchange;
    this.#label = label;
    this.label = el("label", { for: id });
    this.hint = el("span");
    this.pick = el("button", { type: "button", class: "link", onclick: () => this.control.click() });
    this.kinds = el("span", { class: "dim" });
    this.list = el("ul", { class: "previews" });
    this.error = el("p", { class: "error", id: `${id}-error`, hidden: true, role: "alert" });
    this.control = el("input", { type: "file", id, accept: KINDS.join(","), multiple: most > 1, class: "hidden", tabIndex: -1 });
    this.control.addEventListener("change", () => void this.add([...this.control.files]));
    this.note = el("figcaption", { class: "dim" });
    this.sample = el("figure", { class: "sample", hidden: true }, this.note);
    this.hasSample = sample !== "";
    if (this.hasSample) void this.#showSample(sample);
    this.zone = el("div", { class: "drop" }, this.list, this.sample, el("p", {}, this.hint, " ", this.pick, " ", this.kinds));
    this.help = el("p", { class: "dim help" }, help);
    this.help.hidden = help === "";
    const caption = el("div", { class: "label" }, this.label);
    this.root = el("div", { class: "field" }, caption, this.help, this.zone, this.control, this.error);
    this.pick.setAttribute("aria-describedby", `${id}-error`);
    this.takeDrops(this.zone);
    this.translate();
  }

  get photos() {
    return [...this.#photos];
  }

  // Drops on, and pastes into, `element` count as well.
  takeDrops(element) {
    element.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.zone.classList.add("over");
    });
    element.addEventListener("dragleave", () => this.zone.classList.remove("over"));
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.zone.classList.remove("over");
      void this.add([...event.dataTransfer.files]);
    });
    element.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length) return;
      event.preventDefault();
      void this.add(files);
    });
  }

  async add(files) {
    this.clear();
    for (const file of files) {
      if (!KINDS.includes(file.type)) this.complain(t("photo.not", { name: file.name }));
      else if (this.most > 1 && this.#photos.length >= this.most) {
        this.complain(t("photo.many", { most: this.most, name: file.name }));
      } else await this.#take(file);
    }
    this.control.value = ""; // so that the same file can be chosen again
    this.#draw();
    this.onchange();
  }

  async #take(file) {
    const photo = new Photo(file, await dataUrl(file));
    // Where one photo is wanted, a new one takes the place of the old.
    this.#photos = this.most === 1 ? [photo] : [...this.#photos, photo];
    say(t("photo.added", { name: file.name }));
  }

  #remove(photo) {
    this.#photos = this.#photos.filter((other) => other !== photo);
    say(t("photo.removed", { name: photo.name }));
    this.clear();
    this.#draw();
    this.pick.focus();
    this.onchange();
  }

  async #showSample(path) {
    try {
      const picture = await (await call(path, { accept: "image/*" })).blob();
      this.sample.prepend(el("img", { src: URL.createObjectURL(picture), alt: "" }));
    } catch {
      // the note alone says that there is one; asking says what is wrong with it
    }
  }

  restore(photos) {
    this.#photos = [...photos];
    this.#draw();
  }

  empty() {
    this.restore([]);
  }

  #draw() {
    this.list.replaceChildren(...this.#photos.map((photo) => this.#preview(photo)));
    this.sample.hidden = !this.hasSample || this.#photos.length > 0;
  }

  #preview(photo) {
    const name = t("photo.remove", { name: photo.name });
    const remove = el("button", { type: "button", "aria-label": name, title: name, onclick: () => this.#remove(photo) }, "×");
    const picture = el("img", { src: photo.url, alt: "" });
    return el("li", {}, picture, el("span", {}, photo.name, el("span", { class: "dim" }, ` ${bytes(photo.size)}`)), remove);
  }

  translate() {
    text(this.label, this.#label || t(this.most === 1 ? "task.image" : "task.images"));
    text(this.hint, t("photo.drop"));
    text(this.pick, t("photo.pick"));
    text(this.kinds, `(${t("photo.kinds")})`);
    text(this.note, t("photo.sample"));
    this.#draw();
  }

  complain(sentence) {
    this.zone.classList.add("wrong");
    text(this.error, sentence);
    this.error.hidden = false;
  }

  clear() {
    this.zone.classList.remove("wrong");
    this.error.hidden = true;
  }

  focus() {
    this.control.closest("details")?.setAttribute("open", "");
    this.pick.focus();
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
