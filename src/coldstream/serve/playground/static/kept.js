// What lives as long as the tab, over a reload: nothing of it is on the disk once the tab is closed.

export function keep(name, value) {
  try {
    sessionStorage.setItem(`coldstream-${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false; // storage is switched off or full
  }
}

export function kept(name) {
  try {
    return JSON.parse(sessionStorage.getItem(`coldstream-${name}`));
  } catch {
    return null;
  }
}
