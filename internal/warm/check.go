package warm

import "fmt"

// DefaultTargets is how many targets of a site are kept warm if that is not configured.
const DefaultTargets = 100

const (
	maxTargets     = 10000
	maxConnections = 100
)

// Check returns why not so many connections can be kept open to each of so many targets; 0
// targets: DefaultTargets.
func Check(connections, targets int) error {
	switch {
	case connections < 1 || connections > maxConnections:
		return fmt.Errorf("warm: connections %d is not a number from 1 to %d", connections, maxConnections)
	case targets < 0 || targets > maxTargets:
		return fmt.Errorf("warm: targets %d is not a number from 1 to %d", targets, maxTargets)
	}
	return nil
}
