"""The online service: app, lifespan, routes, schemas."""
