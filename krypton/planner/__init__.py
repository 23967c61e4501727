"""From a model and a query to a plan: capture, recognise, rules, cost. `plan_query` is the way in."""
