"""A loader with a state of its own, as torchdata's."""

from torch.utils.data import DataLoader


class Stateful(DataLoader):
    """What torchdata's does: notes the states of the sampler and of its iterator when it draws a batch, which
    workers do ahead; gives those of the last batch that it gave; and when it is iterated it restores them in
    the sampler and in an iterator, which it drops if it had come to the end."""

    restored, finished, given = None, False, 0

    @property
    def _index_sampler(self):
        return self._noted()

    def _noted(self):
        sampler = self.batch_sampler
        batches = iter(sampler)
        state, self.__dict__["restored"] = self.restored, None
        if state is not None:
            sampler.load_state_dict(state["sampler"])
            batches = iter(sampler)
            batches.load_state_dict(state["batches"])
            if state["finished"]:
                batches = iter(sampler)
        self.notes = [(sampler.state_dict(), batches.state_dict())]
        for batch in batches:
            self.notes.append((sampler.state_dict(), batches.state_dict()))
            yield batch

    def __iter__(self):
        self.finished, self.given = False, 0
        iterator = super().__iter__()
        for batch in iterator:
            self.given += 1
            yield batch
        self.finished = True

    def state_dict(self):
        sampler, batches = self.notes[self.given]
        return {"sampler": sampler, "batches": batches, "finished": self.finished}

    def load_state_dict(self, state):
        self.restored = state


SAVED_BY = [["loader"], ["batches"], ["batches", "loader"]]
