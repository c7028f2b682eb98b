"""SLO-aware autoscaler: observes demand and step times."""
