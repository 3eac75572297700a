'use strict';
// What the page does without this file, it does; this makes it quicker to use.

// a filter is applied when it is changed
for (const form of document.querySelectorAll('form[data-auto]')) {
  form.classList.add('auto');
  form.addEventListener('change', () => form.requestSubmit());
}

// say that something goes on, once
function busy(element) {
  element.dataset.before = element.textContent;
  element.textContent = element.dataset.busy;
  element.setAttribute('aria-busy', 'true');
}
for (const form of document.querySelectorAll('form:not([data-auto])')) {
  form.addEventListener('submit', event => {
    const button = form.querySelector('button[data-busy]');
    if (!button || event.defaultPrevented) return;
    if (button.getAttribute('aria-busy')) return event.preventDefault();
    busy(button);
  });
}
for (const link of document.querySelectorAll('a[data-busy]')) {
  link.addEventListener('click', event => { if (!event.ctrlKey && !event.metaKey && !event.shiftKey) busy(link); });
}
window.addEventListener('pageshow', () => {
  for (const e of document.querySelectorAll('[aria-busy]')) { e.textContent = e.dataset.before; e.removeAttribute('aria-busy'); }
});

// a file may be dropped anywhere on its form; one that is too large is not sent
for (const form of document.querySelectorAll('form[data-most]')) {
  const input = form.querySelector('input[type=file]'), said = form.querySelector('[data-said]'), most = Number(form.dataset.most);
  const check = () => {
    const file = input.files[0], large = file && file.size > most;
    said.textContent = large ? `${file.name} has ${(file.size / 1048576).toFixed(0)} MB, and the page takes ${(most / 1048576).toFixed(0)} MB; \`ipbes screen\` takes files of any size.` : '';
    form.querySelector('button').disabled = Boolean(large);
  };
  input.addEventListener('change', check);
  for (const name of ['dragenter', 'dragover']) form.addEventListener(name, event => { event.preventDefault(); form.classList.add('over'); });
  for (const name of ['dragleave', 'drop']) form.addEventListener(name, () => form.classList.remove('over'));
  form.addEventListener('drop', event => {
    event.preventDefault();
    if (event.dataTransfer.files.length !== 1) { said.textContent = 'One file at a time, please.'; return; }
    input.files = event.dataTransfer.files;
    check();
  });
}

// progress without loading the page again
const card = document.querySelector('[data-progress]');
if (card) {
  const look = async () => {
    try {
      const answer = await fetch(card.dataset.progress);
      if (!answer.ok) return location.reload();
      const now = await answer.json();
      card.querySelector('progress').value = now.done;
      card.querySelector('[data-done]').textContent = now.done.toLocaleString('en');
      document.title = `${now.done} of ${now.of} scored`;
      if (now.finished) return location.reload();
    } catch { /* the server is busy or away: look again */ }
    setTimeout(look, 700);
  };
  setTimeout(look, 400);
}
