package command

import (
	"fmt"

	"caddytarget/internal/admin"
)

// showReady is the command `caddy target ready`.
func showReady(c *client) error {
	var ready admin.Ready
	if err := c.get("ready", &ready); err != nil || c.json {
		return err
	}
	_, err := fmt.Fprintln(c.out, "ready")
	return err
}
