// Server-sent events out of a stream of text; EventSource cannot send a POST.

export interface ServerEvent {
  readonly name: string;
  readonly data: string;
}

/** Takes text as it comes, in any pieces; gives the events that are whole. */
export class EventParser {
  private rest = "";

  push(text: string): ServerEvent[] {
    const blocks = (this.rest + text).split(/\r?\n\r?\n/);
    this.rest = blocks.pop() ?? "";
    return blocks.flatMap((block) => {
      let name = "message";
      const data: string[] = [];
      for (const line of block.split(/\r?\n/)) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
      return data.length ? [{ name, data: data.join("\n") }] : [];
    });
  }
}
