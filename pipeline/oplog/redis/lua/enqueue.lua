#!lua
-- Append ops to logs, mark their shards dirty, and take the bells: one round trip, all checks before the first write.
--
-- KEYS  1 epoch of the scope      string  "<epoch> <master_replid> <map>", the map with a "1" for each bucket that has
--                                         entries of the epoch; or why it has ended: "<epoch> forgot:<bucket>",
--                                         "<epoch> ahead:<bucket>"
--       2 full                    string  a reason; there while the pipeline takes nothing
--       3 producer                hash    bucket -> "<last producer seq> <epoch> <seq>", and who: the process that
--                                         sends; expires when idle
--       4 claim                   string  the receipt of the first op with the idempotency key, or a row's id alone;
--                                         the name of 5 for no key: a user's rights end at the prefix, and '' has none
--       5 room                    string  there for a moment after memory was measured and found enough
--       6.. per shard: dirty      zset    bucket -> ms from when on it may be applied
--                      bell       string  there while a Celery message for this shard is on its way: "1"; or while a
--                                         worker is at the shard: "h <holder>", or waits for `wake`: "l <holder>"
--                      wake       list    has an element once an op has come for who waits; expires
--       then per log:  log        stream  entries <epoch>-<dense seq>: p producer, s producer seq, o op; an entry of
--                                         several ops has the seq of its last op, and the producer seq of its first
-- ARGV  1 epoch  2 shards  3 producer  4 row id  5 bytes from which on an op is large, 0 if none of this call is
--       6 prefix of the keys that hold the bytes of a bucket's largest op of late
--       7 ms until the producer expires, 0: leave its expiry  8 ms until the bell counts as lost
--       9 ms until the claim expires  10 ms until the bytes of the largest op expire
--       11 ms until memory is measured again  12 the share of memory above which nothing is taken
--       13 the process that sends, noted where the expiry is put off
--       then per log: bucket, first producer seq, how many ops, how many entries, and of each entry its ops' number and
--       its text
-- Returns one string:
--       "epoch"          raise the epoch first: the lineage changed; or a log has forgotten entries of the epoch, or has
--                        later ones: then other logs of this call may have taken theirs
--       "full <reason>"  nothing was written
--       "claimed <claim>" nothing was written: an op with this key is in a log, or the key is claimed for another row's
--                         id; the latter is no hindrance to an op whose row id is 0
--       "ok <a bit per shard: ring it> <per log: code epoch seq>"
--            code 0 appended, first position; 1 seen before, first position then; 2 a hole, seq is the last one seen;
--            3 not taken, for the hole of another log: no op may pass an older one of another bucket
--            What was seen under another epoch may be gone from its log: it is appended again, and the shard drops it.
-- called in somebody's web request: few calls, and nothing made that the usual single op does not need
local call, format = redis.call, string.format
local epoch, shards, producer, big = ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[5] + 0

local head = call('MGET', KEYS[1], KEYS[2], KEYS[5])
local given_out, full = head[1] or '', head[2]
local replid = 'master_replid:' .. string.sub(given_out, #epoch + 2, #epoch + 41)
if string.sub(given_out, 1, #epoch + 1) ~= epoch .. ' ' or not string.find(call('INFO', 'replication'), replid, 1, true) then
  return 'epoch'
end
if not full and not head[3] then
  -- measured by who appends, so that producers stop in time also while no worker is alive
  local memory = call('INFO', 'memory')
  local limit, share = string.match(memory, '\nmaxmemory:(%d+)') + 0, 0
  if limit > 0 then share = string.match(memory, '\nused_memory:(%d+)') / limit end
  if share > ARGV[12] + 0 then full = format('Redis uses %.0f%% of its memory', share * 100) end
  call('SET', full and KEYS[2] or KEYS[5], full or '1', 'PX', ARGV[11])
end
if full then return 'full ' .. full end
if KEYS[4] ~= KEYS[5] then
  local claim = call('MGET', KEYS[4])[1]  -- nothing, where there is no text
  if claim and (#claim > 100 or string.find(claim, string.rep('%d', 20))) then claim = nil end  -- no numbers of ours
  local sent = claim and string.match(claim, '^%d+ %d+ %d+ %d+ %d+$')
  if sent or (claim and ARGV[4] ~= '0' and claim ~= ARGV[4] and string.match(claim, '^%d+$')
      and (#claim < 19 or (#claim == 19 and claim <= '9223372036854775807'))) then
    return 'claimed ' .. claim
  end
end

local function given_out_by(log)
  -- return epoch and seq of the last id that a log has given out; nothing where there is no log
  local info = redis.pcall('XINFO', 'STREAM', log)
  for i = 1, #info do if info[i] == 'last-generated-id' then return string.match(info[i + 1], '(%d+)-(%d+)') end end
end

local function last_of(log)
  -- the same, of the last entry where there is one: XINFO copies the first one, too, and takes 18 µs where this takes 9
  local found = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
  if found[1] then return string.match(found[1][1], '(%d+)-(%d+)') end
  return given_out_by(log)
end

local function ends(log, bucket, id, at, behind)
  -- return why the epoch ends, if an entry that was just appended says so, its first op at seq `at`; note a log that
  -- begins
  if type(id) == 'table' then
    if string.find(id.err, 'WRONGTYPE', 1, true) then
      call('DEL', log)
      return epoch .. ' forgot:' .. bucket
    end
    local top = tonumber((given_out_by(log)))
    if top == epoch + 0 and string.find(id.err, 'equal or smaller', 1, true) then
      return epoch .. ' forgot:' .. bucket  -- its last entry was taken away
    end
    return top and top > epoch + 0 and top < 2 ^ 53 and format('%.0f ahead:%s', top, bucket)
  end
  local map = #epoch + 42 + bucket
  if at > behind and (at > 0 or string.sub(given_out, map + 1, map + 1) ~= '1') then
    if at == 0 then call('SETRANGE', KEYS[1], map, '1') end
    return
  end
  call('XDEL', log, id)
  return epoch .. ' forgot:' .. bucket
end

local function take(bell, wake)
  -- return '1' if the caller must ring: nobody is on the way, or at the shard
  local held = call('MGET', bell)[1] or ''
  if string.sub(held, 1, 2) == 'l ' and type(redis.pcall('LPUSH', wake, '1')) ~= 'table' then
    call('PEXPIRE', wake, ARGV[8])
    call('SET', bell, 'h ' .. string.sub(held, 3), 'PX', ARGV[8])
    return '0'
  end
  if held ~= '' and string.sub(held, 1, 2) ~= 'l ' then return '0' end
  call('SET', bell, '1', 'PX', ARGV[8])
  return '1'
end

-- of each log what it knows of the producer, and the code of its answer
local codes, lasts, epochs, seqs, hole = {}, {}, {}, {}, false
local log, at = 1, 14
while at <= #ARGV do
  local first, count = ARGV[at + 1] + 0, ARGV[at + 2] + 0
  local seen = redis.pcall('HGET', KEYS[3], ARGV[at])
  if type(seen) == 'table' then call('DEL', KEYS[3]) end  -- no producer of ours
  local last, last_epoch, last_seq = string.match(type(seen) == 'string' and seen or '', '^(%d+) (%d+) (%d+)$')
  last, last_epoch = (last or 0) + 0, last_epoch or '0'
  local code = 0
  if first + count - 1 <= last and last_epoch == epoch then
    code = 1
  elseif first > last + 1 or (first <= last and last_epoch == epoch) then
    code, hole = 2, true
  end
  codes[log], lasts[log], epochs[log], seqs[log] = code, last, last_epoch, (last_seq or 0) + 0
  log, at = log + 1, at + 4 + 2 * ARGV[at + 3]
end

local prefix = epoch .. '-*'
local reply, wrote, ended
local key = 6 + 3 * shards
log, at = 1, 14
while at <= #ARGV do
  local bucket, first, count, placed = ARGV[at], ARGV[at + 1] + 0, ARGV[at + 2] + 0, nil
  if codes[log] == 1 then
    placed = '1 ' .. epoch .. ' ' .. format('%d', seqs[log] - (lasts[log] - first))
  elseif codes[log] == 2 then
    placed = '2 0 ' .. format('%d', lasts[log])
  elseif hole then
    placed = '3 0 0'
  else
    local text, name, from = at + 5, prefix, nil
    if count > 1 then
      local e, s = last_of(KEYS[key])
      from = e == epoch and s + 1 or 0
      name = format('%s-%.0f', epoch, from + ARGV[text - 1] - 1)
    end
    local id = redis.pcall('XADD', KEYS[key], name, 'p', producer, 's', format('%d', first), 'o', ARGV[text])
    if not from and type(id) ~= 'table' then from = string.sub(id, #epoch + 2) + 0 end
    ended = ends(KEYS[key], bucket, id, from, epochs[log] == epoch and seqs[log] or -1)
    if ended then break end
    if type(id) == 'table' then return id end
    local done = ARGV[text - 1] + 0
    for _ = 2, ARGV[at + 3] + 0 do
      text = text + 2
      name = format('%s-%.0f', epoch, from + done + ARGV[text - 1] - 1)
      id = call('XADD', KEYS[key], name, 'p', producer, 's', format('%d', first + done), 'o', ARGV[text])
      done = done + ARGV[text - 1]
    end
    local seq = string.sub(id, #epoch + 2)
    call('HSET', KEYS[3], bucket, format('%d ', first + count - 1) .. epoch .. ' ' .. seq)
    if big > 0 then
      local largest = 0  -- of this log: what comes behind a large op of another must not count as large itself
      for entry = at + 5, at + 3 + 2 * ARGV[at + 3], 2 do
        largest = math.max(largest, math.floor(#ARGV[entry] / ARGV[entry - 1]))
      end
      if largest >= big then
        largest = math.max(largest, tonumber(call('MGET', ARGV[6] .. bucket)[1] or 0) or 0)
        call('SET', ARGV[6] .. bucket, format('%d', largest), 'PX', ARGV[10])
      end
    end
    if KEYS[4] ~= KEYS[5] then
      local receipt = format('%s %s %s %s %s', epoch, seq, producer, ARGV[at + 1], ARGV[4])
      call('SET', KEYS[4], receipt, 'PX', ARGV[9])
    end
    placed = '0 ' .. epoch .. ' ' .. (count == 1 and seq or format('%d', seq - count + 1))
    if wrote then wrote[#wrote + 1] = bucket else wrote = { bucket } end
  end
  reply = reply and reply .. ' ' .. placed or placed
  log, at, key = log + 1, at + 4 + 2 * ARGV[at + 3], key + 1
end

local bits = ''
if not wrote then
  bits = string.rep('0', shards)
else
  if ARGV[7] ~= '0' then
    call('HSET', KEYS[3], 'who', ARGV[13])
    call('PEXPIRE', KEYS[3], ARGV[7])
  end
  local time = call('TIME')
  local now, dirty = time[1] * 1000 + math.floor(time[2] / 1000), {}
  for i, bucket in ipairs(wrote) do dirty[2 * i - 1], dirty[2 * i] = now, bucket end
  for shard = 0, shards - 1 do
    local own = 6 + 3 * shard
    if type(redis.pcall('ZADD', KEYS[own], 'NX', unpack(dirty))) == 'table' then
      call('DEL', KEYS[own])  -- no dirty set of ours
      call('ZADD', KEYS[own], 'NX', unpack(dirty))
    end
    bits = bits .. (ended and '0' or take(KEYS[own + 1], KEYS[own + 2]))
  end
end
if ended then
  call('SET', KEYS[1], ended)
  return 'epoch'
end
return 'ok ' .. bits .. ' ' .. reply
