"""Serves a store without a model, in a process that may be killed: python -m tests.engine.store_server DIR PORT."""

import sys

import uvicorn
from fastapi import FastAPI

from sam_jax.engine.routes import EngineService, create_router
from sam_jax.engine.store import Store

if __name__ == "__main__":
    store = Store(sys.argv[1])
    app = FastAPI()
    app.include_router(create_router(EngineService(store, store.present())))
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", ws="none")
