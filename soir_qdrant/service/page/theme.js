// Light or dark: as the system has it, until the button is pressed.

const KEY = "soir-theme";

/** Take the theme that was chosen before, and let the button switch it. */
export function keepTheme(button) {
  const chosen = stored();
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    store(next);
  });
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // storage is switched off
  }
}

function store(name) {
  try {
    localStorage.setItem(KEY, name);
  } catch {
    // then it lasts as long as the page
  }
}
