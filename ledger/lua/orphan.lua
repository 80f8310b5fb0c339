#!lua flags=allow-oom
-- ARGV: kind, name, what is in it (or empty), grace_ms, 1 to remove
-- Judges one key or member anew and removes it if it is nobody's. Returns 1 if it was, else 0.
local kind, name, inner = ARGV[1], ARGV[2], ARGV[3]
local grace, remove = tonumber(ARGV[4]), ARGV[5] == '1'
local function exists(key) return redis.call('EXISTS', key) == 1 end
local function ended(job)
  local state = redis.call('HGET', job_key(job), 'state')
  return not state or state == 'done' or state == 'cancelled'
end

-- A batch that its job does not count as open, or whose job has ended: nobody will end it.
if kind == 'batch' then
  local key = batch_key(name)
  if not exists(key) then return 0 end
  local job = redis.call('HGET', key, 'job') or ''
  local owned = redis.call('SISMEMBER', open_key(job), name) == 1
  if owned and not ended(job) then return 0 end
  if now_ms() - tonumber(redis.call('HGET', key, 'created') or '0') < grace then return 0 end
  if remove then forget(name, job) end
  return 1
end
-- A batch that a job counts as open and that is not there: the job would never be done.
if kind == 'open' then
  if exists(batch_key(inner)) or redis.call('SISMEMBER', open_key(name), inner) == 0 then return 0 end
  if remove then
    redis.call('SREM', open_key(name), inner)
    finish_if_done(name, now_ms())
  end
  return 1
end
-- A step of a batch that has ended.
if kind == 'step' then
  if exists(batch_key(inner)) or not redis.call('ZSCORE', steps_key(name), inner) then return 0 end
  if remove then redis.call('ZREM', steps_key(name), inner) end
  return 1
end
-- A process that does not live any more.
if kind == 'alive' then
  if exists(P .. 'alive:' .. name) or not redis.call('ZSCORE', P .. 'alive', name) then return 0 end
  if remove then redis.call('ZREM', P .. 'alive', name) end
  return 1
end
-- A collection's entry for a job that has ended.
if kind == 'active' then
  if not ended(inner) or redis.call('HEXISTS', P .. 'active:' .. name, inner) == 0 then return 0 end
  if remove then redis.call('HDEL', P .. 'active:' .. name, inner) end
  return 1
end
-- What a submission would go on with, where that has ended.
if kind == 'adopt' then
  local job = redis.call('GET', P .. 'adopt:' .. name)
  if not job or not ended(job) then return 0 end
  if remove then redis.call('DEL', P .. 'adopt:' .. name) end
  return 1
end
-- A producer's hold on a job that has ended.
if kind == 'hold' then
  local key = job_key(name) .. ':producer'
  if not exists(key) or not ended(name) then return 0 end
  if remove then redis.call('DEL', key) end
  return 1
end
-- Dead letters of a job that is not known any more.
if kind == 'letters' then
  local key = P .. 'dead:' .. name
  if not exists(key) or exists(job_key(name)) then return 0 end
  if remove then redis.call('DEL', key) end
  return 1
end
return 0
