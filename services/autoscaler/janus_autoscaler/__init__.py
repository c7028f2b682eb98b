"""SLO-aware autoscaler: chooses both pool sizes to meet an objective, and has them changed."""
