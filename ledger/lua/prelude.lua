-- Shared by every script: keys, the server's clock, and what it takes to end a batch.
local P = 'v5:'
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function job_key(job) return P .. 'job:' .. job end
local function open_key(job) return P .. 'job:' .. job .. ':open' end
local function idle_key(job) return P .. 'job:' .. job .. ':idle' end
local function batch_key(batch) return P .. 'batch:' .. batch end
local function steps_key(step) return P .. 'steps:' .. step end

-- A word to a producer that its job has no open batch stands this long.
local IDLE_MS = 1000

-- Copies wait for the batch of an original. It wakes them when it ends; should it be lost, they look again
-- after this long.
local WAIT_MS = 300000

-- Has a batch of copies wait for another batch; false if that is not open.
local function wait_for(other, batch)
  local key = batch_key(other)
  if redis.call('EXISTS', key) == 0 then return false end
  redis.call('HSET', key, 'waiter:' .. batch, 1)
  redis.call('ZADD', steps_key('aggregate'), now_ms() + WAIT_MS, batch)
  return true
end

-- The batches that waited for this one are due; returns them.
local function wake(key)
  local woken = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local batch = string.match(field, '^waiter:(.+)$')
    if batch and redis.call('HEXISTS', batch_key(batch), 'lease:aggregate') == 0 then
      -- XX: it may have ended, or be embedded meanwhile.
      redis.call('ZADD', steps_key('aggregate'), 'XX', now_ms(), batch)
      woken[#woken + 1] = batch
    end
  end
  return woken
end

-- Forget a batch: its steps, its credit, its place in the job. The caller has checked that it is open.
-- Returns the batches that waited for it.
local function forget(batch, job)
  local key = batch_key(batch)
  local woken = wake(key)
  local credit = tonumber(redis.call('HGET', key, 'credit') or '0')
  local models = cjson.decode(redis.call('HGET', key, 'models'))
  redis.call('DEL', key)
  for _, model in ipairs(models) do
    redis.call('ZREM', steps_key('embed.' .. model), batch)
  end
  redis.call('ZREM', steps_key('aggregate'), batch)
  redis.call('SREM', open_key(job), batch)
  if redis.call('SCARD', open_key(job)) == 0 and redis.call('EXISTS', job_key(job) .. ':producer') == 1 then
    redis.call('DEL', idle_key(job))
    redis.call('LPUSH', idle_key(job), batch)
    redis.call('PEXPIRE', idle_key(job), IDLE_MS)
  end
  local left = redis.call('DECRBY', P .. 'credit', credit)
  if left < 0 then redis.call('SET', P .. 'credit', 0) end
  return woken
end

-- A job that is sealed and has nothing open is done.
local function finish_if_done(job, now)
  local key = job_key(job)
  if redis.call('HGET', key, 'state') ~= 'sealed' then return false end
  if redis.call('SCARD', open_key(job)) > 0 then return false end
  redis.call('HSET', key, 'state', 'done', 'finished', now)
  redis.call('HDEL', P .. 'active:' .. redis.call('HGET', key, 'collection'), job)
  local adopt = P .. 'adopt:' .. redis.call('HGET', key, 'signature')
  if redis.call('GET', adopt) == job then redis.call('DEL', adopt) end
  return true
end

-- A lease is taken from a holder that said no word: its attempt has vanished, with the chunk that it named.
local function vanish(key, step)
  local holder = redis.call('HGET', key, 'lease:' .. step)
  if not holder then return end
  local chunk = redis.call('HGET', key, 'named:' .. step)
  redis.call('HDEL', key, 'lease:' .. step, 'named:' .. step)
  if step == 'aggregate' then return end
  if chunk then
    redis.call('HSET', key, 'strike:' .. step .. ':' .. holder, chunk)
  else
    redis.call('HSETNX', key, 'vanished:' .. step, holder)
  end
end

-- A word of a holder: it lives, and what it was at when its lease was taken is not to blame. Returns that.
local function alive(key, step, token)
  local strike = 'strike:' .. step .. ':' .. token
  local chunk = redis.call('HGET', key, strike)
  redis.call('HDEL', key, strike)
  if redis.call('HGET', key, 'vanished:' .. step) == token then redis.call('HDEL', key, 'vanished:' .. step) end
  return chunk
end
