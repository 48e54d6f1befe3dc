/** Of the library only what this page uses: it splits Markdown into tokens. */
export function lexer(text: string): { type: string; raw: string; [name: string]: any }[];
