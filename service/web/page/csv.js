// Reads and writes CSV. The separator is the one that the first line has most often: comma, semicolon or tab.

/** Parse a text. Returns { head, rows }: the names of the columns, and the cells of each row with their line. */
export function parse(text) {
  const content = text.replace(/^\uFEFF/, "");
  const first = content.split(/\r?\n/, 1)[0];
  const separator = [",", ";", "\t"].reduce((best, each) => (first.split(each).length > first.split(best).length ? each : best));
  const rows = [];
  let cells = [];
  let cell = "";
  let quoted = false;
  let line = 1;
  let start = 1;
  const endRow = () => {
    cells.push(cell);
    if (cells.length > 1 || cells[0].trim() !== "") rows.push({ line: start, cells });
    [cells, cell] = [[], ""];
  };
  for (let i = 0; i < content.length; i += 1) {
    const letter = content[i];
    if (letter === "\n") line += 1;
    if (quoted) {
      if (letter !== '"') cell += letter;
      else if (content[i + 1] === '"') { cell += '"'; i += 1; } else quoted = false;
    } else if (letter === '"' && cell.trim() === "") {
      [quoted, cell] = [true, ""];
    } else if (letter === separator) {
      cells.push(cell);
      cell = "";
    } else if (letter === "\n") {
      endRow();
      start = line;
    } else if (letter !== "\r") {
      cell += letter;
    }
  }
  if (quoted) throw new Error(`The quoted text that begins in line ${start} has no end.`);
  if (cell !== "" || cells.length) endRow();
  if (!rows.length) throw new Error("The table is empty.");
  const head = rows.shift().cells.map((name) => name.trim());
  return { head, rows };
}

/** Write rows of texts as CSV. */
export function format(rows) {
  const quote = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  return `${rows.map((cells) => cells.map((cell) => quote(String(cell ?? ""))).join(",")).join("\r\n")}\r\n`;
}
