/* Lets one box tick all letters. Without it the page works the same, one box at a time. */
document.addEventListener("DOMContentLoaded", () => {
    const all = document.getElementById("deb-select-all");
    if (!all) {
        return;
    }
    const boxes = document.querySelectorAll("input[name=letter]");
    all.closest("label").hidden = false;
    all.addEventListener("change", () => boxes.forEach((box) => { box.checked = all.checked; }));
    boxes.forEach((box) => box.addEventListener("change", () => {
        all.checked = Array.from(boxes).every((each) => each.checked);
    }));
});
