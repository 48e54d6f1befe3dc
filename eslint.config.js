/** Rules for the page's modules: against what hides mistakes, and against every way to turn text into markup or code. */

import js from "@eslint/js";
import { defineConfig, globalIgnores } from "eslint/config";
import globals from "globals";

/** Properties and methods that parse markup. */
const PARSES =
    "/^(innerHTML|outerHTML|srcdoc|insertAdjacentHTML|createContextualFragment|setHTML|setHTMLUnsafe|parseFromString)$/";

/** Names that every window has, so that a forgotten parameter goes unseen. */
const WINDOW_NAMES = [
    "close",
    "event",
    "length",
    "name",
    "open",
    "origin",
    "parent",
    "status",
    "stop",
    "top",
];

/** @param {string} selector */
const markup = (selector) => ({
    selector,
    message: "text of a model or a user may only become text: use textContent, createElement and append",
});

export default defineConfig([
    globalIgnores(["wgllm/web/vendor/"]),
    {
        extends: [js.configs.recommended],
        languageOptions: { ecmaVersion: 2023, sourceType: "module" },
        linterOptions: { reportUnusedDisableDirectives: "error", reportUnusedInlineConfigs: "error" },
        rules: {
            "array-callback-return": "error",
            curly: "error",
            "default-case-last": "error",
            eqeqeq: "error",
            "no-constructor-return": "error",
            "no-duplicate-imports": "error",
            "no-eval": "error",
            "no-implicit-globals": "error",
            "no-implied-eval": "error",
            "no-new-func": "error",
            "no-promise-executor-return": ["error", { allowVoid: true }],
            "no-restricted-globals": [
                "error",
                ...WINDOW_NAMES.map((name) => ({ name, message: "say whose: window, self or a parameter" })),
            ],
            "no-restricted-syntax": [
                "error",
                markup(`MemberExpression[property.name=${PARSES}]`),
                markup(`MemberExpression[computed=true][property.value=${PARSES}]`),
                markup(`Property[key.name=${PARSES}]`),
                markup("MemberExpression[object.name='document'][property.name=/^write(ln)?$/]"),
                markup(
                    "CallExpression[callee.property.name=/^setAttribute/][arguments.0.value=/^(on|srcdoc$)/i]",
                ),
                { selector: "ForInStatement", message: "it visits what was inherited, too: use Object.keys" },
            ],
            "no-script-url": "error",
            "no-self-compare": "error",
            "no-template-curly-in-string": "error",
            "no-throw-literal": "error",
            "no-unreachable-loop": "error",
            "no-unused-expressions": "error",
            "no-unused-vars": ["error", { caughtErrors: "all", ignoreRestSiblings: true }],
            "no-use-before-define": ["error", { functions: false, classes: false, variables: false }],
            "no-var": "error",
            "object-shorthand": "error",
            "prefer-const": ["error", { destructuring: "all" }],
            "prefer-promise-reject-errors": "error",
        },
    },
    { files: ["wgllm/web/**"], languageOptions: { globals: { ...globals.browser, ...globals.worker } } },
    { files: ["tests/web/js/**", "eslint.config.js"], languageOptions: { globals: globals.node } },
]);
