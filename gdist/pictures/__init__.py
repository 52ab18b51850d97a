"""Pictures of what gdist plans and writes: a tensor's sharding as SVG, a plan as one HTML page.

The values come from `gdist.core.picture` and `gdist.run.plan`; here they are only laid out and drawn.
"""
