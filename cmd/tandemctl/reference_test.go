package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// docs/reference/tandemctl.md is what the commands say of themselves.
func TestReference(t *testing.T) {
	root := (&app{}).rootCommand()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var b strings.Builder
	b.WriteString("# tandemctl\n\n<!-- Generated from cmd/tandemctl: go test ./cmd/tandemctl -update -->\n\n")
	b.WriteString("```text\n" + root.Long + "\n```\n\nFlags of every command:\n\n```text\n" + root.PersistentFlags().FlagUsages() + "```\n")
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Name() == "help" || sub.Name() == "completion" || sub.Short == shortForDomains {
				continue
			}
			if sub.HasSubCommands() {
				walk(sub)
				continue
			}
			long := sub.Long
			if long == "" {
				long = sub.Short
			}
			fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n```text\n%s\n", sub.CommandPath(), sub.Short, sub.UseLine())
			if long != sub.Short {
				fmt.Fprintf(&b, "\n%s\n", long)
			}
			if flags := sub.LocalFlags().FlagUsages(); flags != "" {
				fmt.Fprintf(&b, "\nFlags:\n%s", flags)
			}
			if sub.Example != "" {
				fmt.Fprintf(&b, "\nExamples:\n%s\n", sub.Example)
			}
			b.WriteString("```\n")
		}
	}
	walk(root)
	b.WriteString("\n## tandemctl domain\n\n`tandemctl domain` is short for `tandemctl cluster domains`.\n")
	b.WriteString("\n## tandemctl completion\n\n`tandemctl completion bash|zsh|fish|powershell` prints a completion script for the shell.\n")
	golden(t, "../../docs/reference/tandemctl.md", b.String())
}

// Every command says what it is, takes no wrong argument silently, and shows help.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: bad short help %q", c.CommandPath(), c.Short)
		}
		h := newHarness(t, nil)
		if code := h.run(t.Context(), append(strings.Fields(c.CommandPath())[1:], "--help")); code != 0 || h.out.Len() == 0 || h.err.Len() > 0 {
			t.Errorf("%s --help: exit code %d: %s", c.CommandPath(), code, h.err.String())
		}
		if !c.HasSubCommands() {
			h := newHarness(t, nil)
			if code := h.run(t.Context(), append(strings.Fields(c.CommandPath())[1:], "a", "b", "c")); code != 2 {
				t.Errorf("%s a b c: exit code %d, want 2", c.CommandPath(), code)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).rootCommand())
}
